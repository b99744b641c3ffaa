from main import main

main("tokenizer_json")
