from main import main

main("llama2c")
