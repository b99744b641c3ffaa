from main import main

main("safetensors")
