// Vectors of floats in the compiler's own notation, loaded from and stored to float and bfloat16.

#pragma once

#include <cstdint>
#include <cstring>
#include <utility>

#if defined(LANES)
constexpr int V = LANES;
#elif defined(__AVX512F__)
constexpr int V = 16;
#elif defined(__AVX__)
constexpr int V = 8;
#else
constexpr int V = 4;
#endif

typedef float vf __attribute__((vector_size(4 * V)));
typedef float vf_any __attribute__((vector_size(4 * V), aligned(4), may_alias));
typedef int32_t vi __attribute__((vector_size(4 * V)));
typedef uint32_t vu __attribute__((vector_size(4 * V)));
typedef uint16_t vh __attribute__((vector_size(2 * V)));
typedef uint16_t vh_any __attribute__((vector_size(2 * V), aligned(2), may_alias));
struct bf16 { uint16_t bits; };

static inline vf load(const float* p) { return *(const vf_any*)p; }
static inline vf load(const bf16* p) { return (vf)(__builtin_convertvector((vh)*(const vh_any*)p, vu) << 16); }
static inline void store(float* p, vf x) { *(vf_any*)p = x; }
static inline void store(bf16* p, vf x) {
    vu bits = (vu)x;
    *(vh_any*)p = __builtin_convertvector((bits + 0x7fff + ((bits >> 16) & 1)) >> 16, vh);  // to nearest, ties to even
}
static inline float value(float x) { return x; }
static inline float value(bf16 x) {
    uint32_t bits = (uint32_t)x.bits << 16;
    float out;
    std::memcpy(&out, &bits, 4);
    return out;
}
static inline vf splat(float x) { return x - (vf){}; }
static inline float total(vf x) {
    float sum = 0;
    for (int i = 0; i < V; i++) sum += x[i];
    return sum;
}
static inline vf larger(vf a, vf b) { return a > b ? a : b; }
static inline vf smaller(vf a, vf b) { return a < b ? a : b; }

// e^x to about 2 ulp for |x| <= 87, beyond which the ends are held: 2^n times a polynomial on [-ln 2 / 2, ln 2 / 2].
static inline vf exponential(vf x) {
    x = smaller(larger(x, splat(-87.0f)), splat(87.0f));
    vf binary = x * 1.44269504f;
    vi whole = __builtin_convertvector(binary + (binary < 0 ? splat(-0.5f) : splat(0.5f)), vi);
    vf n = __builtin_convertvector(whole, vf);
    vf r = x - n * 0.693359375f + n * 2.12194440e-4f;
    vf p = r * 1.9875691500e-4f + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    return (vf)((vi)p + (whole << 23));
}
static inline vf sigmoid(vf x) { return 1.0f / (1.0f + exponential(-x)); }

// Rows of D numbers, `stride` apart, as floats side by side.
template <class X>
static void widen(const X* x, long stride, float* out, long rows, long D) {
    for (long r = 0; r < rows; r++)
        for (long d = 0; d < D; d += V) store(out + r * D + d, load(x + r * stride + d));
}
