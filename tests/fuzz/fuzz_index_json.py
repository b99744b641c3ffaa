from main import main

main("index_json")
