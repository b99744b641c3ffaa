# One row per instruction set, in the order in which they are tried: the last one that the CPU supports is used.
#
#   lb_isa(NAME <folder in src/kernels/isa>  BASE <the set whose kernels it has where it brings none of its own>
#          FOR <processors, a regular expression>
#          NEEDS <flag of base/cpu.h, empty for none>  FLAGS <of GCC and Clang>  MSVC <of Visual C++>
#          [ON <the only system>]  [TRY <C that the compiler must know; where it does not, the set is left out>])
#
# A set with wider registers, or with the three-operand encoding of AVX, has all kernels of its own: what its flags make
# of the same source is faster. Where the flags add only a dot product the rest is inherited. Clang 20 and later compile
# MMX to SSE2, so a build of theirs for processors without SSE2 has no mmx.

lb_isa(NAME portable    BASE portable  FOR ".*"                         NEEDS ""           FLAGS ""  MSVC "")
lb_isa(NAME mmx         BASE portable  FOR "x86_64|x86|i[3-6]86"        NEEDS "MMX"        FLAGS "-mmmx"  MSVC ""  TRY "_mm_cvtsi64_si32(_mm_set1_pi16(1))")
lb_isa(NAME sse2        BASE portable  FOR "x86_64|amd64|x86|i[3-6]86"  NEEDS "SSE2"       FLAGS "-msse2 -mfpmath=sse"  MSVC "")
lb_isa(NAME ssse3       BASE sse2      FOR "x86_64|amd64|x86|i[3-6]86"  NEEDS "SSSE3"      FLAGS "-mssse3 -mfpmath=sse"  MSVC "")
lb_isa(NAME avx2        BASE portable  FOR "x86_64|amd64"               NEEDS "AVX2"       FLAGS "-mavx2 -mf16c"  MSVC "/arch:AVX2")
lb_isa(NAME avxvnni     BASE avx2      FOR "x86_64|amd64"               NEEDS "AVXVNNI"    FLAGS "-mavx2 -mf16c -mavxvnni"  MSVC "/arch:AVX2")
lb_isa(NAME avx512vnni  BASE portable  FOR "x86_64|amd64"               NEEDS "AVX512VNNI" FLAGS "-mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx512vnni"  MSVC "/arch:AVX512")
lb_isa(NAME avx512vbmi  BASE avx512vnni  FOR "x86_64|amd64"             NEEDS "AVX512VBMI" FLAGS "-mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx512vnni -mavx512vbmi"  MSVC "/arch:AVX512")
lb_isa(NAME zen4        BASE avx512vbmi  FOR "x86_64|amd64"             NEEDS "ZEN4"       FLAGS "-mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx512vnni -mavx512vbmi"  MSVC "/arch:AVX512")
lb_isa(NAME amx         BASE avx512vbmi  FOR "x86_64|amd64"             NEEDS "AMX"        FLAGS "-mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx512vnni -mavx512vbmi -mamx-tile -mamx-int8"  MSVC ""  ON "Linux"  TRY "_tile_dpbsud(0, 1, 2)")
lb_isa(NAME armv6       BASE portable  FOR "armv6l|armv7l|arm"           NEEDS "ARMV6"      FLAGS ""  MSVC ""  TRY "__smlad(0, 0, 0)")
lb_isa(NAME neon        BASE portable  FOR "aarch64|arm64"              NEEDS "NEON"       FLAGS ""  MSVC "")
lb_isa(NAME neondot     BASE neon      FOR "aarch64|arm64"              NEEDS "NEONDOT"    FLAGS "-march=armv8.2-a+dotprod"  MSVC "")
lb_isa(NAME neoni8mm    BASE neondot   FOR "aarch64|arm64"              NEEDS "NEONI8MM"   FLAGS "-march=armv8.2-a+dotprod+i8mm"  MSVC ""  TRY "vmmlaq_s32(vdupq_n_s32(0), vdupq_n_s8(0), vdupq_n_s8(0))")
