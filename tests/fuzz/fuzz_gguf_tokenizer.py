from main import main

main("gguf_tokenizer")
