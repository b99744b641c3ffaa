from main import main

main("tiktoken")
