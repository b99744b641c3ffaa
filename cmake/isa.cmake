# One row per instruction set, in the order in which they are tried: the last one that the CPU supports is used.
#
#   lb_isa(NAME <folder in src/kernels/isa>  FOR <processors, a regular expression>
#          NEEDS <flag of isa/cpu.h, empty for none>  FLAGS <of GCC and Clang>  MSVC <of Visual C++>)

lb_isa(NAME portable    FOR ".*"                         NEEDS ""           FLAGS ""  MSVC "")
lb_isa(NAME mmx         FOR "x86_64|x86|i[3-6]86"        NEEDS "MMX"        FLAGS "-mmmx"  MSVC "")
lb_isa(NAME sse2        FOR "x86_64|amd64|x86|i[3-6]86"  NEEDS "SSE2"       FLAGS "-msse2 -mfpmath=sse"  MSVC "")
lb_isa(NAME ssse3       FOR "x86_64|amd64|x86|i[3-6]86"  NEEDS "SSSE3"      FLAGS "-mssse3 -mfpmath=sse"  MSVC "")
lb_isa(NAME avx2        FOR "x86_64|amd64"               NEEDS "AVX2"       FLAGS "-mavx2 -mf16c"  MSVC "/arch:AVX2")
lb_isa(NAME avxvnni     FOR "x86_64|amd64"               NEEDS "AVXVNNI"    FLAGS "-mavx2 -mf16c -mavxvnni"  MSVC "/arch:AVX2")
lb_isa(NAME avx512vnni  FOR "x86_64|amd64"               NEEDS "AVX512VNNI" FLAGS "-mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx512vnni"  MSVC "/arch:AVX512")
lb_isa(NAME neon        FOR "aarch64|arm64"              NEEDS "NEON"       FLAGS ""  MSVC "")
lb_isa(NAME neondot     FOR "aarch64|arm64"              NEEDS "NEONDOT"    FLAGS "-march=armv8.2-a+dotprod"  MSVC "")
