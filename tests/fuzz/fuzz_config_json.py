from main import main

main("config_json")
