# A Raspberry Pi Zero under Debian's armel: ARMv6 and VFP, floats passed in integer registers. For gcc-arm-linux-gnueabi.
# Python_INCLUDE_DIR has to be given on the command line: what a toolchain file says about it is overwritten.
set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR armv6l)
set(CMAKE_C_COMPILER arm-linux-gnueabi-gcc)
set(CMAKE_C_FLAGS_INIT "-mcpu=arm1176jzf-s -mfpu=vfp -mfloat-abi=softfp -marm")
set(CMAKE_FIND_ROOT_PATH_MODE_PROGRAM NEVER)
