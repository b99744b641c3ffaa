from main import main

main("gguf")
