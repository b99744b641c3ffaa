# Any target that zig knows, from any machine: LOWBIT_ZIG_TARGET is its name for it, such as aarch64-linux-gnu.2.17, and
# LOWBIT_ZIG_CPU the oldest processor that shall run the result. For tools/wheels/build.py.
foreach(setting TARGET CPU PYTHON)
  if(NOT LOWBIT_ZIG_${setting}) # the small projects with which CMake tries the compiler know only the environment
    set(LOWBIT_ZIG_${setting} "$ENV{LOWBIT_ZIG_${setting}}")
  endif()
endforeach()
string(REGEX MATCH "^[^-]+" CMAKE_SYSTEM_PROCESSOR "${LOWBIT_ZIG_TARGET}")
if(CMAKE_SYSTEM_PROCESSOR STREQUAL "x86")
  set(CMAKE_SYSTEM_PROCESSOR i686)
endif()
if(LOWBIT_ZIG_TARGET MATCHES "-windows")
  set(CMAKE_SYSTEM_NAME Windows)
elseif(LOWBIT_ZIG_TARGET MATCHES "-macos")
  set(CMAKE_SYSTEM_NAME Darwin)
  set(CMAKE_USER_MAKE_RULES_OVERRIDE_C ${CMAKE_CURRENT_LIST_DIR}/zig-macos.cmake) # after CMake's own rules for macOS
else()
  set(CMAKE_SYSTEM_NAME Linux)
endif()
set(CMAKE_C_COMPILER ${LOWBIT_ZIG_PYTHON} -m ziglang cc -target ${LOWBIT_ZIG_TARGET} -mcpu=${LOWBIT_ZIG_CPU})
set(CMAKE_C_FLAGS_INIT "-fno-sanitize=undefined -g0")
set(CMAKE_SHARED_LINKER_FLAGS_INIT "-s")
set(CMAKE_MODULE_LINKER_FLAGS_INIT "-s")
set(CMAKE_FIND_ROOT_PATH_MODE_PROGRAM NEVER)
