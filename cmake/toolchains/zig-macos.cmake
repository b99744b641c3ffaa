# For zig.cmake: zig's linker crashes at the -bundle that CMake would say, and Python loads a library as well.
set(CMAKE_SHARED_MODULE_CREATE_C_FLAGS "-dynamiclib")
