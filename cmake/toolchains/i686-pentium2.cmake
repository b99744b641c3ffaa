# Linux on a Pentium II: cmov and MMX, floating point by the x87, no SSE. For gcc-i686-linux-gnu of Debian.
# Python_INCLUDE_DIR has to be given on the command line: what a toolchain file says about it is overwritten.
set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR i686)
set(CMAKE_C_COMPILER i686-linux-gnu-gcc)
set(CMAKE_C_FLAGS_INIT "-march=pentium2 -mno-sse")
set(CMAKE_FIND_ROOT_PATH_MODE_PROGRAM NEVER)
