/* What ggml's encoders and decoders are compiled into, by NVRTC for a card or by a C++ compiler for tests.
 *
 * A kernel takes how many blocks there are; on a card a thread works on one of them, elsewhere a loop on all.
 * The bytes are ggml's where C leaves nothing open. Where it does, x86 decides, and hubbot_* below say what it does.
 */
#ifdef __CUDACC__
#define FUNCTION static __device__ __forceinline__
#define TABLE static __device__ const
#define VARIABLE __device__
#define UNROLL _Pragma("unroll")
#define KERNEL(name, ...) extern "C" __global__ void __launch_bounds__(128) name(long long count, __VA_ARGS__)
#define EACH(b) const long long b = blockIdx.x * (long long) blockDim.x + threadIdx.x; if (b < count)
#else
#include <math.h>
#include <string.h>
#define FUNCTION static inline
#define TABLE static const
#define VARIABLE static
#define UNROLL
#define KERNEL(name, ...) extern "C" void name(long long count, __VA_ARGS__)
#define EACH(b) for (long long b = 0; b < count; ++b)
#endif

/* NVRTC includes no headers. */
typedef signed char hubbot_i8; typedef unsigned char hubbot_u8; typedef short hubbot_i16; typedef unsigned short hubbot_u16;
typedef int hubbot_i32; typedef unsigned int hubbot_u32; typedef long long hubbot_i64; typedef unsigned long long hubbot_u64;
#define int8_t hubbot_i8
#define uint8_t hubbot_u8
#define int16_t hubbot_i16
#define uint16_t hubbot_u16
#define int32_t hubbot_i32
#define uint32_t hubbot_u32
#define int64_t hubbot_i64
#define uint64_t hubbot_u64
#undef UINT32_C
#undef UINT16_C
#define UINT32_C(x) x##u
#define UINT16_C(x) x
#undef NULL
#define NULL 0
#define FLT_MAX 3.402823466e+38f
#undef assert
#define assert(x) ((void) 0)
#define printf(...) ((void) 0)

/* Set by blocks whose bytes are not to be used: NOT_FINITE where a scale is no finite half, LOST where ggml
 * would end the process, as it does where no point of a grid is near. */
#define NOT_FINITE 1
#define LOST 2
VARIABLE int hubbot_odd;
#define GGML_ASSERT(x) do { if (!(x)) hubbot_odd = LOST; } while (0)
#define GGML_ABORT(...) (hubbot_odd = LOST)
#define GGML_UNUSED(x) ((void) 0)
#define GGML_RESTRICT __restrict
#define GGML_EXTENSION
#define GGML_COMMON_AGGR_U
#define GGML_COMMON_AGGR_S
#define MIN(a, b) ((a) < (b) ? (a) : (b))
#define MAX(a, b) ((a) > (b) ? (a) : (b))
typedef uint16_t ggml_half; typedef uint32_t ggml_half2; typedef uint16_t ggml_fp16_t;
#define GGML_FP32_TO_FP16(x) hubbot_half(x)
#define GGML_FP16_TO_FP32(x) ggml_compute_fp16_to_fp32(x)
enum ggml_type { GGML_TYPE_IQ2_XXS = 16, GGML_TYPE_IQ2_XS = 17, GGML_TYPE_IQ1_S = 19, GGML_TYPE_IQ2_S = 22, GGML_TYPE_IQ1_M = 29 };

/* Float to integer as x86's cvttss2si: what does not fit is INT_MIN. A card saturates, and gives 0 for a NaN. */
FUNCTION int hubbot_int(float v) { return v >= -2147483648.f && v < 2147483648.f ? (int) v : (int) 0x80000000; }

/* lroundf as glibc's on x86-64, as far as its callers look at it. */
FUNCTION int hubbot_lround(float v) { return v >= -2147483648.f && v < 2147483648.f ? (int) roundf(v) : 0; }

/* A stable sort of (value, number) pairs by value: glibc's qsort is one for so few. */
FUNCTION void hubbot_sort(float * pairs, int n) {
    int * number = (int *) (pairs + 1);
    for (int a = 1; a < n; ++a) {
        const float v = pairs[2*a];
        const int k = number[2*a];
        int b = a - 1;
        while (b >= 0 && pairs[2*b] > v) {
            pairs[2*b + 2] = pairs[2*b];
            number[2*b + 2] = number[2*b];
            --b;
        }
        pairs[2*b + 2] = v;
        number[2*b + 2] = k;
    }
}
