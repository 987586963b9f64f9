// The network's small operations on a CPU: one pass over memory each, where plain torch takes several and leaves vectors half empty.
// Every function names the plain torch function that it must equal. Tensors are contiguous unless a stride is passed; T is float or
// bfloat16, sums are kept in float. Letters: B batch, T frames, S tokens per frame, h heads, D head size, C = h D, E channels.
//
// One thread computes a call. A small network gains nothing from more, see cores.py.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <utility>
#include <vector>

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

// ---- products of small matrices ----

// C[R x N*V] (+)= A B with A[i, k] = a[i * row + k * column]; everything float.
template <int R, int N>
static void tile(const float* a, long row, long column, const float* b, long ldb, float* c, long ldc, long inner, bool add) {
    vf sum[R][N];
    for (int i = 0; i < R; i++)
        for (int j = 0; j < N; j++) sum[i][j] = add ? load(c + i * ldc + j * V) : vf{};
    for (long k = 0; k < inner; k++) {
        vf right[N];
        for (int j = 0; j < N; j++) right[j] = load(b + k * ldb + j * V);
        for (int i = 0; i < R; i++) {
            vf left = splat(a[i * row + k * column]);
            for (int j = 0; j < N; j++) sum[i][j] += left * right[j];
        }
    }
    for (int i = 0; i < R; i++)
        for (int j = 0; j < N; j++) store(c + i * ldc + j * V, sum[i][j]);
}

template <int N>
static void strip(const float* a, long row, long column, const float* b, long ldb, float* c, long ldc, long rows, long inner, bool add) {
    constexpr int R = V == 16 ? 8 : 4;
    long i = 0;
    for (; i + R <= rows; i += R) tile<R, N>(a + i * row, row, column, b, ldb, c + i * ldc, ldc, inner, add);
    for (; i < rows; i++) tile<1, N>(a + i * row, row, column, b, ldb, c + i * ldc, ldc, inner, add);
}

// C[rows x columns] (+)= A[rows x inner] B[inner x columns]; columns a multiple of V.
static void product(const float* a, long row, long column, const float* b, long ldb, float* c, long ldc, long rows, long columns, long inner,
                    bool add) {
    long j = 0;
    for (; j + 3 * V <= columns; j += 3 * V) strip<3>(a, row, column, b + j, ldb, c + j, ldc, rows, inner, add);
    for (; j < columns; j += V) strip<1>(a, row, column, b + j, ldb, c + j, ldc, rows, inner, add);
}

// ---- norms ----

// rms_norm: out = x / rms(x) * weight, then relu if asked, times scale.
template <class X>
static void normalise(const X* x, long stride, const float* weight, X* out, long rows, long C, float eps, int relu, float scale) {
    for (long r = 0; r < rows; r++, x += stride, out += C) {
        vf squares = {};
        for (long c = 0; c < C; c += V) { vf v = load(x + c); squares += v * v; }
        float inverse = scale / std::sqrt(total(squares) / C + eps);
        for (long c = 0; c < C; c += V) {
            vf v = load(x + c) * inverse * load(weight + c);
            store(out + c, relu ? larger(v, vf{}) : v);
        }
    }
}

template <class X>
static void normalise_backward(const X* grad, const X* x, long stride, const float* weight, X* grad_x, float* grad_weight, long rows, long C,
                               float eps, int relu, float scale) {
    for (long r = 0; r < rows; r++, grad += C, x += stride, grad_x += C) {
        vf squares = {}, along = {};
        for (long c = 0; c < C; c += V) {
            vf v = load(x + c), w = load(weight + c), g = load(grad + c);
            if (relu) g = v * w > 0 ? g : vf{};
            squares += v * v;
            along += v * w * g;
        }
        float inverse = 1 / std::sqrt(total(squares) / C + eps), back = total(along) * inverse * inverse / C;
        for (long c = 0; c < C; c += V) {
            vf v = load(x + c), w = load(weight + c), g = load(grad + c) * (scale * inverse);
            if (relu) g = v * w > 0 ? g : vf{};
            store(grad_x + c, g * w - v * (back * scale * inverse));
            store(grad_weight + c, load(grad_weight + c) + g * v);
        }
    }
}

// modulate: layer norm without affine part, then the frame's own scale and shift (frames, C); S rows to a frame.
template <class X>
static void modulate(const X* x, const float* shift, const float* scale, long step, X* out, float* statistics, long frames, long S, long C) {
    for (long f = 0; f < frames; f++, shift += step, scale += step)
        for (long s = 0; s < S; s++, x += C, out += C) {
            vf sum = {}, squares = {};
            for (long c = 0; c < C; c += V) sum += load(x + c);
            float mean = total(sum) / C;
            for (long c = 0; c < C; c += V) { vf v = load(x + c) - mean; squares += v * v; }
            float inverse = 1 / std::sqrt(total(squares) / C + 1e-6f);
            if (statistics) *statistics++ = mean, *statistics++ = inverse;
            for (long c = 0; c < C; c += V)
                store(out + c, (load(x + c) - mean) * inverse * (1.0f + load(scale + c)) + load(shift + c));
        }
}

template <class X>
static void modulate_backward(const X* grad, const X* x, const float* scale, long step, const float* statistics, X* grad_x, float* grad_shift,
                              float* grad_scale, long frames, long S, long C) {
    for (long f = 0; f < frames; f++, scale += step, grad_shift += C, grad_scale += C)
        for (long s = 0; s < S; s++, x += C, grad += C, grad_x += C) {
            float mean = *statistics++, inverse = *statistics++;
            vf sum = {}, along = {};
            for (long c = 0; c < C; c += V) {
                vf g = load(grad + c), n = (load(x + c) - mean) * inverse, inner = g * (1.0f + load(scale + c));
                store(grad_shift + c, load(grad_shift + c) + g);
                store(grad_scale + c, load(grad_scale + c) + g * n);
                sum += inner;
                along += inner * n;
            }
            float mean_grad = total(sum) / C, mean_along = total(along) / C;
            for (long c = 0; c < C; c += V) {
                vf n = (load(x + c) - mean) * inverse, inner = load(grad + c) * (1.0f + load(scale + c));
                store(grad_x + c, (inner - mean_grad - n * mean_along) * inverse);
            }
        }
}

// ---- the gate of the attention's output: silu(gate) * (a + b) ----

template <class X>
static void gated_sum(const X* gate, long stride, const X* a, const X* b, X* out, long rows, long C) {
    for (long r = 0; r < rows; r++, gate += stride, a += C, b += C, out += C)
        for (long c = 0; c < C; c += V) {
            vf g = load(gate + c);
            store(out + c, g * sigmoid(g) * (load(a + c) + load(b + c)));
        }
}

template <class X>
static void gated_sum_backward(const X* grad, const X* gate, const X* a, const X* b, X* grad_gate, X* grad_sum, long count) {
    for (long i = 0; i < count; i += V) {
        vf g = load(gate + i), s = sigmoid(g), up = load(grad + i);
        store(grad_sum + i, up * g * s);
        store(grad_gate + i, up * (load(a + i) + load(b + i)) * s * (1.0f + g * (1.0f - s)));
    }
}

// ---- rays and rotary positions ----

template <int K, int... I>
static inline vf spread(vf x, std::integer_sequence<int, I...>) { return __builtin_shufflevector(x, x, (I / 4 * 4 + K)...); }
template <int... I>
static inline vf swapped(vf x, std::integer_sequence<int, I...>) { return __builtin_shufflevector(x, x, (I ^ 1)...); }
using Lanes = std::make_integer_sequence<int, V>;

// Column k of a 4 x 4 matrix, repeated for every group of four lanes; all zero where no group is moved.
struct Columns { vf column[4]; };
static Columns columns_of(const float* m) {
    Columns out;
    for (int k = 0; k < 4; k++)
        for (int i = 0; i < V; i++) out.column[k][i] = m[i % 4 * 4 + k];
    return out;
}
static inline vf moved(vf x, const Columns& m) {
    return spread<0>(x, Lanes()) * m.column[0] + spread<1>(x, Lanes()) * m.column[1] + spread<2>(x, Lanes()) * m.column[2] +
           spread<3>(x, Lanes()) * m.column[3];
}

// move: per head, the first half in groups of four by the token's matrix, the second half turned by `table` (tokens, 2, D/2).
// `stride` elements lie between tokens of x; `sign` -1 turns back. With a null matrix the table is (tokens, 2, D) and all of the head is turned: rotate.
template <class X>
static void move(const X* x, long stride, const float* matrices, const float* table, X* out, long tokens, long heads, long D, float sign) {
    long half = matrices ? D / 2 : 0, turned = D - half;
    std::vector<float> cosine(D), sine(D), kept(D);
    for (long d = 0; d < half; d++) kept[d] = 1;
    for (long n = 0; n < tokens; n++, table += 2 * turned, x += stride - heads * D) {
        Columns m{};
        if (matrices) m = columns_of(matrices + 16 * n);
        for (long d = 0; d < turned; d++) cosine[half + d] = table[d], sine[half + d] = sign * table[turned + d];
        for (long h = 0; h < heads; h++, x += D, out += D)
            for (long d = 0; d < D; d += V) {
                vf v = load(x + d), y = v * load(&cosine[d]) + swapped(v, Lanes()) * load(&sine[d]);
                if (d < half) y += moved(v, m) * load(&kept[d]);
                store(out + d, y);
            }
    }
}

// ---- the key convolution over time ----

// The inputs of short_conv: x (B, T, S, C) with `stride` elements between tokens, and three frames (B, 3, S, C) on either side or null.
template <class X>
struct Known {
    const X *x, *past, *future;
    long stride, T, S, C;
    // Frame f of clip b, null where it is zero; `step` is set to the elements between tokens.
    const X* frame(long b, long f, long* step) const {
        *step = f >= 0 && f < T ? stride : C;
        if (f < 0) return past ? past + (b * 3 + f + 3) * S * C : nullptr;
        if (f >= T) return future ? future + (b * 3 + f - T) * S * C : nullptr;
        return x + (b * T + f) * S * stride;
    }
};

struct Taps {  // (4, C) from the stored (C, 1, 4); a tap serves both directions
    std::vector<float> taps;
    Taps(const float* weight, long C) : taps(4 * C) {
        for (long c = 0; c < C; c++)
            for (int j = 0; j < 4; j++) taps[j * C + c] = weight[4 * c + j];
    }
    static long of(long distance) { return 3 - std::abs(distance); }
};

// Whether frame t sees frame f: all of the past, the future to the end of its span; the last span may go on behind the clip.
static bool sees(long t, long f, const int64_t* ends, long T) { return f <= t + 3 && f >= t - 3 && (f < ends[t] || ends[t] == T); }

// short_conv; `ends` says where each frame's span ends.
template <class X>
static void short_conv(const X* x, long stride, const X* past, const X* future, const float* weight, const int64_t* ends, X* out, long B, long T,
                       long S, long C) {
    Known<X> known{x, past, future, stride, T, S, C};
    Taps taps(weight, C);
    for (long b = 0; b < B; b++)
        for (long t = 0; t < T; t++) {
            const X* from[7];
            const float* tap[7];
            long step[7], count = 0;
            for (long f = t - 3; f <= t + 3; f++)
                if (sees(t, f, ends, T) && (from[count] = known.frame(b, f, &step[count]))) tap[count++] = &taps.taps[Taps::of(f - t) * C];
            for (long s = 0; s < S; s++, out += C)
                for (long c = 0; c < C; c += V) {
                    vf sum = {};
                    for (long j = 0; j < count; j++) sum += load(from[j] + s * step[j] + c) * load(tap[j] + c);
                    store(out + c, sum);
                }
        }
}

// grad_x (B, T, S, C); grad_past and grad_future (B, 3, S, C) or null; grad_weight (C, 4).
template <class X>
static void short_conv_backward(const X* grad, const X* x, long stride, const X* past, const X* future, const float* weight,
                                const int64_t* ends, X* grad_x, X* grad_past, X* grad_future, float* grad_weight, long B, long T, long S,
                                long C) {
    Known<X> known{x, past, future, stride, T, S, C};
    Known<X> into{grad_x, grad_past, grad_future, C, T, S, C};
    Taps taps(weight, C);
    std::vector<float> sums(4 * C);
    for (long b = 0; b < B; b++)
        for (long f = -3; f < T + 3; f++) {
            long step, to_step;
            const X* from = known.frame(b, f, &step);
            X* to = const_cast<X*>(into.frame(b, f, &to_step));
            if (!from) continue;
            for (long s = 0; s < S; s++)
                for (long c = 0; c < C; c += V) {
                    vf sum = {}, input = load(from + s * step + c);
                    for (long t = std::max(f - 3, 0L); t <= std::min(f + 3, T - 1); t++) {
                        if (!sees(t, f, ends, T)) continue;
                        vf g = load(grad + ((b * T + t) * S + s) * C + c);
                        float* of_tap = &sums[Taps::of(f - t) * C + c];
                        sum += g * load(&taps.taps[Taps::of(f - t) * C + c]);
                        store(of_tap, load(of_tap) + g * input);
                    }
                    if (to) store(to + s * C + c, sum);
                }
        }
    for (long c = 0; c < C; c++)
        for (int j = 0; j < 4; j++) grad_weight[4 * c + j] = sums[j * C + c];
}

// ---- the depthwise part of the feed-forward ----

struct Filter {  // (9, E) taps from the stored (E, 1, 3, 3)
    std::vector<float> taps;
    Filter(const float* weight, long E) : taps(9 * E) {
        for (long e = 0; e < E; e++)
            for (int k = 0; k < 9; k++) taps[k * E + e] = weight[9 * e + k];
    }
};

// The neighbours of a cell that lie in the image, as offsets in cells, with their taps.
static int neighbours(long y, long x, long H, long W, long* offsets, int* taps) {
    int count = 0;
    for (int dy = -1; dy <= 1; dy++)
        for (int dx = -1; dx <= 1; dx++)
            if (y + dy >= 0 && y + dy < H && x + dx >= 0 && x + dx < W) {
                offsets[count] = dy * W + dx;
                taps[count++] = (dy + 1) * 3 + dx + 1;
            }
    return count;
}

// gated_mix: 3 x 3 depthwise convolution of x (images, H, W, E), then the first half of the channels times silu of the second.
// `mixed` (images, H, W, E), if not null, is what the convolution gave.
template <class X>
static void gated_mix(const X* x, const float* weight, const float* bias, X* mixed, X* out, long images, long H, long W, long E) {
    Filter filter(weight, E);
    long offsets[9], half = E / 2;
    int taps[9];
    for (long image = 0; image < images; image++)
        for (long cell = 0; cell < H * W; cell++, x += E, out += half) {
            int count = neighbours(cell / W, cell % W, H, W, offsets, taps);
            for (long e = 0; e < half; e += V) {
                vf a = load(bias + e), b = load(bias + half + e);
                for (int k = 0; k < count; k++) {
                    const X* from = x + offsets[k] * E + e;
                    const float* tap = &filter.taps[taps[k] * E + e];
                    a += load(from) * load(tap);
                    b += load(from + half) * load(tap + half);
                }
                if (mixed) store(mixed + e, a), store(mixed + half + e, b);
                store(out + e, a * b * sigmoid(b));
            }
            if (mixed) mixed += E;
        }
}

// Gradients with respect to x, weight (E, 9) and bias (E), the last two in float; `grad_mixed` is room for (images, H, W, E).
template <class X>
static void gated_mix_backward(const X* grad, const X* x, const X* mixed, const float* weight, X* grad_mixed, X* grad_x, float* grad_weight,
                               float* grad_bias, long images, long H, long W, long E) {
    Filter filter(weight, E);
    std::vector<float> sums(9 * E);
    long offsets[9], half = E / 2, cells = H * W;
    int taps[9];
    for (long image = 0; image < images; image++, x += cells * E, mixed += cells * E, grad_x += cells * E) {
        for (long cell = 0; cell < cells; cell++, grad += half)
            for (long e = 0; e < half; e += V) {
                vf a = load(mixed + cell * E + e), b = load(mixed + cell * E + half + e), s = sigmoid(b), g = load(grad + e);
                vf grad_a = g * b * s, grad_b = g * a * s * (1.0f + b * (1.0f - s));
                store(grad_mixed + cell * E + e, grad_a);
                store(grad_mixed + cell * E + half + e, grad_b);
                store(grad_bias + e, load(grad_bias + e) + grad_a);
                store(grad_bias + half + e, load(grad_bias + half + e) + grad_b);
            }
        for (long cell = 0; cell < cells; cell++) {
            int count = neighbours(cell / W, cell % W, H, W, offsets, taps);
            for (long e = 0; e < E; e += V) {
                vf sum = {}, input = load(x + cell * E + e);
                for (int k = 0; k < count; k++) {  // this cell is the mirrored neighbour of its neighbours
                    vf g = load(grad_mixed + (cell + offsets[k]) * E + e);
                    float* total = &sums[(8 - taps[k]) * E + e];
                    sum += g * load(&filter.taps[(8 - taps[k]) * E + e]);
                    store(total, load(total) + g * input);
                }
                store(grad_x + cell * E + e, sum);
            }
        }
    }
    for (long e = 0; e < E; e++)
        for (int k = 0; k < 9; k++) grad_weight[9 * e + k] = sums[k * E + e];
}

// ---- the gated delta rule ----

template <class X>
static void widen(const X* x, long stride, float* out, long rows, long D) {
    for (long r = 0; r < rows; r++)
        for (long d = 0; d < D; d += V) store(out + r * D + d, load(x + r * stride + d));
}

// The rows of one head turned by the rotary table (rows, 2, D).
static void turn(const float* x, const float* table, float* out, long rows, long D) {
    for (long r = 0; r < rows; r++)
        for (long d = 0; d < D; d += V) {
            vf v = load(x + r * D + d), c = load(table + 2 * r * D + d), s = load(table + (2 * r + 1) * D + d);
            store(out + r * D + d, v * c + swapped(v, Lanes()) * s);
        }
}

static void turn_back(const float* x, const float* table, float* out, long rows, long D) {
    for (long r = 0; r < rows; r++)
        for (long d = 0; d < D; d += V) {
            vf v = load(x + r * D + d), c = load(table + 2 * r * D + d), s = load(table + (2 * r + 1) * D + d);
            store(out + r * D + d, v * c - swapped(v, Lanes()) * s);
        }
}

static void transpose(const float* x, float* out, long D) {
    for (long i = 0; i < D; i++)
        for (long j = 0; j < D; j++) out[j * D + i] = x[i * D + j];
}

// z A = g (z - ((z K^T) B) K) plus the write, the sum of beta k: one row of the normaliser through a frame, without the matrix A.
static void absorb(float* z, const float* keys, const float* beta, long step, float decay, long S, long D) {
    std::vector<float> old(z, z + D);
    for (long d = 0; d < D; d += V) store(z + d, load(z + d) * decay);
    for (long s = 0; s < S; s++) {
        vf dot = {};
        for (long d = 0; d < D; d += V) dot += load(&old[d]) * load(keys + s * D + d);
        float amount = beta[s * step] * (1.0f - decay * total(dot));
        for (long d = 0; d < D; d += V) store(z + d, load(z + d) + amount * load(keys + s * D + d));
    }
}

// One head of one clip. The state is kept transposed (rows K channels, columns V channels), so that a read-out is one plain product.
struct Head {
    long T, S, D;
    std::vector<float> transitions, states, keys, values, queries, weighted, later, rows, later_row;
    Head(long T, long S, long D)
        : T(T), S(S), D(D), transitions(T * D * D), states(T * D * D), keys(S * D), values(S * D), queries(T * S * D),
          weighted(S * D), later(D * D), rows(T * D), later_row(D) {}

    // A^T = g (I - K^T B K)^T and the write (B K)^T V of frame t; the write goes to `states`.
    void learn(long t, const float* beta, long beta_step, float decay) {
        for (long s = 0; s < S; s++)
            for (long d = 0; d < D; d += V) store(&weighted[s * D + d], load(&keys[s * D + d]) * beta[s * beta_step]);
        float* a = &transitions[t * D * D];
        product(weighted.data(), 1, D, keys.data(), D, a, D, D, D, S, false);  // symmetric up to rounding: B is diagonal
        for (long i = 0; i < D * D; i += V) store(a + i, load(a + i) * -decay);
        for (long i = 0; i < D; i++) a[i * D + i] += decay;
        product(weighted.data(), 1, D, values.data(), D, &states[t * D * D], D, D, D, S, false);
    }

    // states[t] = A_t^T states[t - 1] + write_t forward, `initial` (D, D) or null before the first; then what later frames of the span
    // write is added. The last state stays the forward one.
    void scan(const float* initial, const int64_t* ends) {
        std::vector<float> writes(states);
        const float* before = initial;
        for (long t = 0; t < T; t++) {
            if (before) product(&transitions[t * D * D], D, 1, before, D, &states[t * D * D], D, D, D, D, true);
            before = &states[t * D * D];
        }
        std::fill(later.begin(), later.end(), 0.0f);
        for (long t = T - 2; t >= 0; t--) {
            if (ends[t] == t + 1) {
                std::fill(later.begin(), later.end(), 0.0f);
                continue;
            }
            float* write = &writes[(t + 1) * D * D];
            product(&transitions[(t + 1) * D * D], D, 1, later.data(), D, write, D, D, D, D, true);
            std::copy(write, write + D * D, later.begin());
            for (long i = 0; i < D * D; i += V) store(&states[t * D * D + i], load(&states[t * D * D + i]) + load(&later[i]));
        }
    }

    // rows[t]: the normaliser after frame t, from `row`, with what later frames of the span write. `row` ends as the forward one.
    // keys (T, S, D) are those that were not turned; beta and decay are this head's, `heads` apart.
    void normalise(float* row, const float* keys, const float* beta, const float* decay, long heads, const int64_t* ends) {
        for (long t = 0; t < T; t++) {
            absorb(row, keys + t * S * D, beta + t * S * heads, heads, decay[t * heads], S, D);
            std::copy(row, row + D, &rows[t * D]);
        }
        std::fill(later_row.begin(), later_row.end(), 0.0f);
        for (long t = T - 2; t >= 0; t--) {
            if (ends[t] == t + 1) {
                std::fill(later_row.begin(), later_row.end(), 0.0f);
                continue;
            }
            absorb(later_row.data(), keys + (t + 1) * S * D, beta + (t + 1) * S * heads, heads, decay[(t + 1) * heads], S, D);
            for (long d = 0; d < D; d += V) store(&rows[t * D + d], load(&rows[t * D + d]) + load(&later_row[d]));
        }
    }
};

// GatedDeltaAttention.mix of the main branch (`table` turns keys and queries, the normaliser divides) or of the camera branch
// (`table` and `z` null). q, k, v (B, T, S, h, D) with `stride` elements between tokens (v: `stride_v`), beta (B, T, S, h), decay (B, T, h),
// table (B, T, S, 2, D), matrix (B, h, D, D) with V channels in rows, z (B, h, D); null states are zero. `out` (B, T, S, h, D).
template <class X>
static void delta(const X* q, const X* k, const X* v, long stride_v, const float* beta, const float* decay, const float* table,
                  const float* matrix, const float* z, const int64_t* ends, X* out, float* next_matrix, float* next_z, long B, long T, long S,
                  long heads, long D) {
    Head head(T, S, D);
    long C = heads * D;
    std::vector<float> plain_queries(table ? T * S * D : 0), plain_keys(table ? T * S * D : 0), initial(D * D), read(S * D);
    for (long b = 0; b < B; b++)
        for (long h = 0; h < heads; h++) {
            for (long t = 0; t < T; t++) {
                long frame = b * T + t, token = frame * S;
                const float* turning = table + token * 2 * D;
                widen(q + token * C + h * D, C, table ? &plain_queries[t * S * D] : &head.queries[t * S * D], S, D);
                widen(k + token * C + h * D, C, table ? &plain_keys[t * S * D] : head.keys.data(), S, D);
                widen(v + token * stride_v + h * D, stride_v, head.values.data(), S, D);
                if (table) {
                    turn(&plain_queries[t * S * D], turning, &head.queries[t * S * D], S, D);
                    turn(&plain_keys[t * S * D], turning, head.keys.data(), S, D);
                }
                head.learn(t, beta + token * heads + h, heads, decay[frame * heads + h]);
            }
            if (matrix) transpose(matrix + (b * heads + h) * D * D, initial.data(), D);
            head.scan(matrix ? initial.data() : nullptr, ends);
            transpose(&head.states[(T - 1) * D * D], next_matrix + (b * heads + h) * D * D, D);
            if (table) {
                float* row = next_z + (b * heads + h) * D;
                for (long d = 0; d < D; d++) row[d] = z ? z[(b * heads + h) * D + d] : 0;
                head.normalise(row, plain_keys.data(), beta + b * T * S * heads + h, decay + b * T * heads + h, heads, ends);
            }
            for (long t = 0; t < T; t++) {
                product(&head.queries[t * S * D], D, 1, &head.states[t * D * D], D, read.data(), D, S, D, D, false);
                for (long s = 0; s < S; s++) {
                    float factor = 1;
                    if (table) {
                        vf dot = {};
                        for (long d = 0; d < D; d += V) dot += load(&plain_queries[(t * S + s) * D + d]) * load(&head.rows[t * D + d]);
                        factor = 1 / (total(dot) + 1e-8f);
                    }
                    X* to = out + ((b * T + t) * S + s) * C + h * D;
                    for (long d = 0; d < D; d += V) store(to + d, load(&read[s * D + d]) * factor);
                }
            }
        }
}

// y = A x = g (x - sum of beta k (k x)): the normaliser's transition, which is symmetric, applied to a row.
static void carry(const float* x, float* y, const float* keys, const float* beta, long step, float decay, long S, long D) {
    for (long d = 0; d < D; d += V) store(y + d, load(x + d) * decay);
    for (long s = 0; s < S; s++) {
        vf dot = {};
        for (long d = 0; d < D; d += V) dot += load(x + d) * load(keys + s * D + d);
        float amount = decay * beta[s * step] * total(dot);
        for (long d = 0; d < D; d += V) store(y + d, load(y + d) - amount * load(keys + s * D + d));
    }
}

// Gradients of one head of one clip with respect to what the matrix and the normaliser of every frame are made of. `Frame` pointers are those
// of frame t: keys, values (S, D), beta and grad_beta (S) `step` apart; gradients are added to.
struct Frame {
    const float *keys, *values, *beta;
    float *grad_keys, *grad_values, *grad_beta, *grad_decay;
    long step, S, D;
    float decay;

    // Through A^T = g (I - G) and the write (B K)^T V, both (D, D): `of_a` and `of_write` are their gradients. `room` holds 2 (S, D).
    void learn_backward(const float* a, float* of_a, const float* of_write, float* room) {
        float along = 0;
        for (long i = 0; i < D * D; i++) along += a[i] * of_a[i];
        *grad_decay += along / std::max(decay, 1e-30f);
        for (long i = 0; i < D; i++)  // dG + dG^T, as G is used in one order and symmetric in its parts
            for (long j = 0; j <= i; j++) of_a[i * D + j] = of_a[j * D + i] = -decay * (of_a[i * D + j] + of_a[j * D + i]);
        float *of_gram = room, *of_writes = room + S * D;
        product(keys, D, 1, of_a, D, of_gram, D, S, D, D, false);
        std::vector<float> flipped(D * D);
        transpose(of_write, flipped.data(), D);
        product(values, D, 1, flipped.data(), D, of_writes, D, S, D, D, false);
        for (long s = 0; s < S; s++) {
            vf dot = {};
            for (long d = 0; d < D; d += V) {
                vf gram = load(of_gram + s * D + d), write = load(of_writes + s * D + d), k = load(keys + s * D + d);
                dot += k * (0.5f * gram + write);
                store(grad_keys + s * D + d, load(grad_keys + s * D + d) + beta[s * step] * (gram + write));
            }
            grad_beta[s * step] += total(dot);
        }
        product(keys, D, 1, of_write, D, of_writes, D, S, D, D, false);
        for (long s = 0; s < S; s++)
            for (long d = 0; d < D; d += V) store(grad_values + s * D + d, load(of_writes + s * D + d) * beta[s * step]);
    }

    // Through row' = A row + sum of beta k with the gradient `y` of row'; `row` null is zero.
    void absorb_backward(const float* row, const float* y) {
        for (long s = 0; s < S; s++) {
            const float* k = keys + s * D;
            vf of_k = {}, with_row = {};
            for (long d = 0; d < D; d += V) {
                of_k += load(y + d) * load(k + d);
                if (row) with_row += load(row + d) * load(k + d);
            }
            float up = total(of_k), seen = total(with_row), b = beta[s * step];
            grad_beta[s * step] += up * (1.0f - decay * seen);
            *grad_decay -= b * up * seen;
            for (long d = 0; d < D; d += V) {
                vf sum = load(y + d) * (b * (1.0f - decay * seen));
                if (row) sum -= load(row + d) * (decay * b * up);
                store(grad_keys + s * D + d, load(grad_keys + s * D + d) + sum);
            }
        }
        if (row)
            for (long d = 0; d < D; d++) *grad_decay += y[d] * row[d];
    }
};

// Gradients of `delta`. Inputs as there, all contiguous (v as well); `grad` (B, T, S, h, D), `grad_after` and `grad_row` those of the states after
// the last frame. Outputs: grad_q, grad_k, grad_v like q; the others float: grad_beta, grad_decay, grad_matrix, grad_z (the last two may be null).
template <class X>
static void delta_backward(const X* grad, const float* grad_after, const float* grad_row, const X* q, const X* k, const X* v, const float* beta,
                           const float* decay, const float* table, const float* matrix, const float* z, const int64_t* ends, X* grad_q,
                           X* grad_k, X* grad_v, float* grad_beta, float* grad_decay, float* grad_matrix, float* grad_z, long B, long T, long S,
                           long heads, long D) {
    Head head(T, S, D);
    long C = heads * D, SD = S * D, DD = D * D;
    using Floats = std::vector<float>;
    Floats plain_queries(T * SD), plain_keys(T * SD), keys(T * SD), values(T * SD), initial(DD), row(D), up(T * SD), of_queries(SD),
        of_plain_queries(T * SD), of_keys(T * SD), of_plain_keys(T * SD), of_values(T * SD), forward(T * DD), later(T * DD), of_states(T * DD),
        of_a(DD), of_write(DD), before(DD), carried(DD), room(2 * SD), read(SD), first(T * D), second(T * D), of_rows(T * D), y(D), y_next(D),
        flipped(DD);
    for (long b = 0; b < B; b++)
        for (long h = 0; h < heads; h++) {
            auto place = [&](long t) { return (b * T + t) * S * C + h * D; };
            auto strength = [&](long t) { return (b * T + t) * S * heads + h; };
            auto gate = [&](long t) { return (b * T + t) * heads + h; };
            auto last_of_span = [&](long t) { return ends[t] == t + 1; };
            const float* turning = table + b * T * S * 2 * D;
            for (long t = 0; t < T; t++) {  // forward again: states, rows
                widen(q + place(t), C, &plain_queries[t * SD], S, D);
                widen(k + place(t), C, &plain_keys[t * SD], S, D);
                widen(v + place(t), C, &values[t * SD], S, D);
                widen(grad + place(t), C, &up[t * SD], S, D);
                if (table) {
                    turn(&plain_queries[t * SD], turning + t * SD * 2, &head.queries[t * SD], S, D);
                    turn(&plain_keys[t * SD], turning + t * SD * 2, &keys[t * SD], S, D);
                } else {
                    std::copy(&plain_queries[t * SD], &plain_queries[t * SD] + SD, &head.queries[t * SD]);
                    std::copy(&plain_keys[t * SD], &plain_keys[t * SD] + SD, &keys[t * SD]);
                }
                std::copy(&keys[t * SD], &keys[t * SD] + SD, head.keys.begin());
                std::copy(&values[t * SD], &values[t * SD] + SD, head.values.begin());
                head.learn(t, beta + strength(t), heads, decay[gate(t)]);
            }
            if (matrix) transpose(matrix + (b * heads + h) * DD, initial.data(), D);
            Floats writes(head.states);
            head.scan(matrix ? initial.data() : nullptr, ends);
            for (long t = 0; t < T; t++) {  // the two halves of every state, one by one
                float* now = &forward[t * DD];
                std::copy(&writes[t * DD], &writes[t * DD] + DD, now);
                const float* past = t ? &forward[(t - 1) * DD] : matrix ? initial.data() : nullptr;
                if (past) product(&head.transitions[t * DD], D, 1, past, D, now, D, D, D, D, true);
                for (long i = 0; i < DD; i += V) store(&later[t * DD + i], load(&head.states[t * DD + i]) - load(now + i));
            }
            if (table) {
                for (long d = 0; d < D; d++) row[d] = z ? z[(b * heads + h) * D + d] : 0;
                head.normalise(row.data(), plain_keys.data(), beta + strength(0), decay + gate(0), heads, ends);
                for (long d = 0; d < D; d++) row[d] = z ? z[(b * heads + h) * D + d] : 0;
                for (long t = 0; t < T; t++) {
                    absorb(row.data(), &plain_keys[t * SD], beta + strength(t), heads, decay[gate(t)], S, D);
                    for (long d = 0; d < D; d++) first[t * D + d] = row[d], second[t * D + d] = head.rows[t * D + d] - row[d];
                }
            }
            std::fill(of_keys.begin(), of_keys.end(), 0.0f);
            std::fill(of_plain_keys.begin(), of_plain_keys.end(), 0.0f);
            std::fill(of_plain_queries.begin(), of_plain_queries.end(), 0.0f);
            std::fill(of_rows.begin(), of_rows.end(), 0.0f);
            for (long t = 0; t < T; t++) {  // through the read-out
                if (table) {
                    product(&head.queries[t * SD], D, 1, &head.states[t * DD], D, read.data(), D, S, D, D, false);
                    for (long s = 0; s < S; s++) {
                        vf dot = {}, with_up = {};
                        float *of_out = &up[(t * S + s) * D], *rows = &head.rows[t * D], *plain = &plain_queries[(t * S + s) * D];
                        for (long d = 0; d < D; d += V) {
                            dot += load(plain + d) * load(rows + d);
                            with_up += load(of_out + d) * load(&read[s * D + d]);
                        }
                        float inverse = 1 / (total(dot) + 1e-8f), of_divisor = -total(with_up) * inverse * inverse;
                        for (long d = 0; d < D; d += V) {
                            store(of_out + d, load(of_out + d) * inverse);
                            store(&of_plain_queries[(t * S + s) * D + d], load(rows + d) * of_divisor);
                            store(&of_rows[t * D + d], load(&of_rows[t * D + d]) + load(plain + d) * of_divisor);
                        }
                    }
                }
                transpose(&head.states[t * DD], flipped.data(), D);
                product(&up[t * SD], D, 1, flipped.data(), D, of_queries.data(), D, S, D, D, false);
                product(&head.queries[t * SD], 1, D, &up[t * SD], D, &of_states[t * DD], D, D, D, S, false);
                if (table) {  // turned back, beside what the divisor gave
                    std::copy(of_queries.begin(), of_queries.end(), read.begin());
                    turn_back(read.data(), turning + t * SD * 2, of_queries.data(), S, D);
                    for (long i = 0; i < SD; i += V) store(&of_queries[i], load(&of_queries[i]) + load(&of_plain_queries[t * SD + i]));
                }
                for (long s = 0; s < S; s++)
                    for (long d = 0; d < D; d += V) store(grad_q + place(t) + s * C + d, load(&of_queries[s * D + d]));
            }
            // dN_t = dM_t + A_{t+1} dN_{t+1} runs backward, dR_t = dM_t + A_t dR_{t-1} forward; `before` of frame t is dR_{t-1}
            Floats of_later(T * DD);
            for (long t = 0; t < T; t++) {
                std::copy(&of_states[t * DD], &of_states[t * DD] + DD, &of_later[t * DD]);
                if (t && !last_of_span(t - 1))
                    product(&head.transitions[t * DD], 1, D, &of_later[(t - 1) * DD], D, &of_later[t * DD], D, D, D, D, true);
            }
            if (grad_after) transpose(grad_after + (b * heads + h) * DD, carried.data(), D);
            else std::fill(carried.begin(), carried.end(), 0.0f);
            for (long t = T - 1; t >= 0; t--) {
                for (long i = 0; i < DD; i += V) store(&carried[i], load(&carried[i]) + load(&of_states[t * DD + i]));
                std::copy(carried.begin(), carried.end(), of_write.begin());
                const float* past = t ? &forward[(t - 1) * DD] : matrix ? initial.data() : nullptr;
                if (past) {
                    transpose(past, flipped.data(), D);
                    product(carried.data(), D, 1, flipped.data(), D, of_a.data(), D, D, D, D, false);
                } else std::fill(of_a.begin(), of_a.end(), 0.0f);
                if (t && !last_of_span(t - 1)) {
                    const float* of_r = &of_later[(t - 1) * DD];
                    transpose(&later[t * DD], flipped.data(), D);
                    product(of_r, D, 1, flipped.data(), D, of_a.data(), D, D, D, D, true);
                    for (long i = 0; i < DD; i += V) store(&of_write[i], load(&of_write[i]) + load(of_r + i));
                }
                std::copy(carried.begin(), carried.end(), before.begin());
                product(&head.transitions[t * DD], 1, D, before.data(), D, carried.data(), D, D, D, D, false);
                Frame frame{&keys[t * SD], &values[t * SD], beta + strength(t), &of_keys[t * SD], &of_values[t * SD],
                            grad_beta + strength(t), grad_decay + gate(t), heads, S, D, decay[gate(t)]};
                frame.learn_backward(&head.transitions[t * DD], of_a.data(), of_write.data(), room.data());
            }
            if (grad_matrix) transpose(carried.data(), grad_matrix + (b * heads + h) * DD, D);
            if (table) {
                auto frame = [&](long t) {
                    return Frame{&plain_keys[t * SD], nullptr, beta + strength(t), &of_plain_keys[t * SD], nullptr,
                                 grad_beta + strength(t), grad_decay + gate(t), heads, S, D, decay[gate(t)]};
                };
                for (long d = 0; d < D; d++) y[d] = grad_row ? grad_row[(b * heads + h) * D + d] : 0;
                for (long t = T - 1; t >= 0; t--) {
                    for (long d = 0; d < D; d++) y[d] += of_rows[t * D + d];
                    const float* past = t ? &first[(t - 1) * D] : z ? z + (b * heads + h) * D : nullptr;
                    frame(t).absorb_backward(past, y.data());
                    carry(y.data(), y_next.data(), &plain_keys[t * SD], beta + strength(t), heads, decay[gate(t)], S, D);
                    y.swap(y_next);
                }
                if (grad_z) std::copy(y.begin(), y.end(), grad_z + (b * heads + h) * D);
                for (long t = 1; t < T; t++) {  // y is the gradient of the later part of frame t - 1
                    if (last_of_span(t - 1)) continue;
                    if (t == 1 || last_of_span(t - 2)) std::copy(&of_rows[(t - 1) * D], &of_rows[t * D], y.begin());
                    frame(t).absorb_backward(&second[t * D], y.data());
                    carry(y.data(), y_next.data(), &plain_keys[t * SD], beta + strength(t), heads, decay[gate(t)], S, D);
                    for (long d = 0; d < D; d++) y[d] = y_next[d] + of_rows[t * D + d];
                }
            }
            for (long t = 0; t < T; t++) {
                if (table) {
                    turn_back(&of_keys[t * SD], turning + t * SD * 2, read.data(), S, D);
                    for (long i = 0; i < SD; i += V) store(&of_keys[t * SD + i], load(&read[i]) + load(&of_plain_keys[t * SD + i]));
                }
                for (long s = 0; s < S; s++)
                    for (long d = 0; d < D; d += V) {
                        store(grad_k + place(t) + s * C + d, load(&of_keys[(t * S + s) * D + d]));
                        store(grad_v + place(t) + s * C + d, load(&of_values[(t * S + s) * D + d]));
                    }
            }
        }
}

// mean_growth: the mean over a frame's tokens of |after|^2 / |before|^2 per head, (frames, h).
template <class X>
static void mean_growth(const X* before, const X* after, float* out, long frames, long S, long heads, long D) {
    for (long f = 0; f < frames; f++, out += heads) {
        for (long h = 0; h < heads; h++) out[h] = 0;
        for (long s = 0; s < S; s++)
            for (long h = 0; h < heads; h++, before += D, after += D) {
                vf a = {}, b = {};
                for (long d = 0; d < D; d += V) {
                    vf x = load(before + d), y = load(after + d);
                    b += x * x;
                    a += y * y;
                }
                out[h] += std::max(total(a), 1e-12f) / std::max(total(b), 1e-12f) / S;
            }
    }
}

// ---- softmax attention ----

// Keys and values of one head, (L, D) with strides in elements, in float: float ones are read where they lie.
struct Rows {
    std::vector<float> copy;
    const float* data;
    long step;
    void read(const float* x, long stride, long, long) { data = x, step = stride; }
    void read(const bf16* x, long stride, long rows, long D) {
        copy.resize(rows * D);
        widen(x, stride, copy.data(), rows, D);
        data = copy.data(), step = D;
    }
};

// Scores are kept transposed, keys in rows and WIDE queries in columns: all of the softmax then goes down columns.
struct Attention {
    static constexpr long WIDE = 3 * V;
    long L, D;
    std::vector<float> scores, queries, across, read;
    float inverse[WIDE];
    Attention(long L, long D) : L(L), D(D), scores(L * WIDE), queries(WIDE * D), across(D * WIDE), read(WIDE * D) {}

    // Rows n to n + WIDE of x (N, D) in `rows`, zero behind the last, and transposed in `columns` (D, WIDE).
    template <class X>
    static long take(const X* x, long step, long n, long N, long D, float* rows, float* columns) {
        long count = std::min(WIDE, N - n);
        widen(x + n * step, step, rows, count, D);
        std::fill(rows + count * D, rows + WIDE * D, 0.0f);
        for (long r = 0; r < WIDE; r++)
            for (long d = 0; d < D; d++) columns[d * WIDE + r] = rows[r * D + d];
        return count;
    }

    // exp(scale (s - max)) of every column in place, `inverse` one over its sum; keys that are not allowed get zero.
    void soften(const uint8_t* allowed, float scale) {
        for (long c = 0; c < WIDE; c += V) {
            vf most = splat(-INFINITY), sum = {};
            for (long l = 0; l < L; l++)
                if (!allowed || allowed[l]) most = larger(most, load(&scores[l * WIDE + c]));
            for (long l = 0; l < L; l++) {
                vf e = !allowed || allowed[l] ? exponential((load(&scores[l * WIDE + c]) - most) * scale) : vf{};
                sum += e;
                store(&scores[l * WIDE + c], e);
            }
            store(inverse + c, 1.0f / sum);
        }
    }
};

// q and out (B, N, h, D), q with strides; keys and values lie in `parts` pieces (B, h, L, D), each a pointer and three strides, D innermost;
// allowed (B, L in all) or null.
template <class X>
static void attend(const X* q, const int64_t* q_steps, const X* const* k, const int64_t* k_steps, const X* const* v, const int64_t* v_steps,
                   const int64_t* lengths, long parts, const uint8_t* allowed, X* out, long B, long heads, long N, long D, float scale) {
    long L = 0;
    for (long p = 0; p < parts; p++) L += lengths[p];
    Attention a(L, D);
    std::vector<Rows> keys(parts), values(parts);
    for (long b = 0; b < B; b++)
        for (long h = 0; h < heads; h++) {
            for (long p = 0; p < parts; p++) {
                const int64_t *ks = k_steps + 3 * p, *vs = v_steps + 3 * p;
                keys[p].read(k[p] + b * ks[0] + h * ks[1], ks[2], lengths[p], D);
                values[p].read(v[p] + b * vs[0] + h * vs[1], vs[2], lengths[p], D);
            }
            for (long n = 0; n < N; n += a.WIDE) {
                long count = a.take(q + b * q_steps[0] + h * q_steps[2], q_steps[1], n, N, D, a.queries.data(), a.across.data());
                float* to = a.scores.data();
                for (long p = 0; p < parts; to += lengths[p++] * a.WIDE)
                    product(keys[p].data, keys[p].step, 1, a.across.data(), a.WIDE, to, a.WIDE, lengths[p], a.WIDE, D, false);
                a.soften(allowed ? allowed + b * L : nullptr, scale);
                to = a.scores.data();
                for (long p = 0; p < parts; to += lengths[p++] * a.WIDE)
                    product(to, 1, a.WIDE, values[p].data, values[p].step, a.read.data(), D, count, D, lengths[p], p > 0);
                for (long r = 0; r < count; r++)
                    for (long d = 0; d < D; d += V) store(out + ((b * N + n + r) * heads + h) * D + d, load(&a.read[r * D + d]) * a.inverse[r]);
            }
        }
}

// Gradients of `attend` with one piece of keys and values; all tensors contiguous, grad_q (B, N, h, D), grad_k and grad_v (B, h, L, D).
template <class X>
static void attend_backward(const X* grad, const X* q, const X* k, const X* v, const uint8_t* allowed, X* grad_q, X* grad_k, X* grad_v, long B,
                            long heads, long N, long L, long D, float scale) {
    Attention a(L, D);
    constexpr long WIDE = Attention::WIDE;
    std::vector<float> up(WIDE * D), up_across(D * WIDE), slopes(L * WIDE), of_k(L * D), of_v(L * D);
    Rows keys, values;
    for (long b = 0; b < B; b++)
        for (long h = 0; h < heads; h++, k += L * D, v += L * D, grad_k += L * D, grad_v += L * D) {
            keys.read(k, D, L, D);
            values.read(v, D, L, D);
            std::fill(of_k.begin(), of_k.end(), 0.0f);
            std::fill(of_v.begin(), of_v.end(), 0.0f);
            for (long n = 0; n < N; n += WIDE) {
                long first = b * N * heads * D + h * D;
                long count = a.take(q + first, heads * D, n, N, D, a.queries.data(), a.across.data());
                a.take(grad + first, heads * D, n, N, D, up.data(), up_across.data());
                product(keys.data, D, 1, a.across.data(), WIDE, a.scores.data(), WIDE, L, WIDE, D, false);
                a.soften(allowed ? allowed + b * L : nullptr, scale);
                product(values.data, D, 1, up_across.data(), WIDE, slopes.data(), WIDE, L, WIDE, D, false);
                for (long c = 0; c < WIDE; c += V) {
                    vf share = load(a.inverse + c), along = {};
                    for (long i = c; i < L * WIDE; i += WIDE) {
                        vf p = load(&a.scores[i]) * share;
                        store(&a.scores[i], p);
                        along += p * load(&slopes[i]);
                    }
                    for (long i = c; i < L * WIDE; i += WIDE) store(&slopes[i], load(&a.scores[i]) * (load(&slopes[i]) - along) * scale);
                }
                product(a.scores.data(), WIDE, 1, up.data(), D, of_v.data(), D, L, D, WIDE, true);
                product(slopes.data(), WIDE, 1, a.queries.data(), D, of_k.data(), D, L, D, WIDE, true);
                product(slopes.data(), 1, WIDE, keys.data, D, a.read.data(), D, count, D, L, false);
                for (long r = 0; r < count; r++)
                    for (long d = 0; d < D; d += V) store(grad_q + first + (n + r) * heads * D + d, load(&a.read[r * D + d]));
            }
            for (long i = 0; i < L * D; i += V) store(grad_k + i, load(&of_k[i])), store(grad_v + i, load(&of_v[i]));
        }
}

// ---- what Python calls: every function for both types ----

#define EXPORT extern "C" __attribute__((visibility("default"))) void
#define FOR_BOTH(name, parameters, arguments) \
    EXPORT name##_float32(parameters(float)) { name(arguments); } \
    EXPORT name##_bfloat16(parameters(bf16)) { name(arguments); }
#define LIST(...) __VA_ARGS__

#define NORMALISE(X) const X *x, long stride, const float *weight, X *out, long rows, long C, float eps, int relu, float scale
FOR_BOTH(normalise, NORMALISE, LIST(x, stride, weight, out, rows, C, eps, relu, scale))
#define NORMALISE_BACKWARD(X) \
    const X *grad, const X *x, long stride, const float *weight, X *grad_x, float *grad_weight, long rows, long C, float eps, int relu, \
        float scale
FOR_BOTH(normalise_backward, NORMALISE_BACKWARD, LIST(grad, x, stride, weight, grad_x, grad_weight, rows, C, eps, relu, scale))
#define MODULATE(X) const X *x, const float *shift, const float *scale, long step, X *out, float *statistics, long frames, long S, long C
FOR_BOTH(modulate, MODULATE, LIST(x, shift, scale, step, out, statistics, frames, S, C))
#define MODULATE_BACKWARD(X) \
    const X *grad, const X *x, const float *scale, long step, const float *statistics, X *grad_x, float *grad_shift, float *grad_scale, \
        long frames, long S, long C
FOR_BOTH(modulate_backward, MODULATE_BACKWARD, LIST(grad, x, scale, step, statistics, grad_x, grad_shift, grad_scale, frames, S, C))
#define GATED_SUM(X) const X *gate, long stride, const X *a, const X *b, X *out, long rows, long C
FOR_BOTH(gated_sum, GATED_SUM, LIST(gate, stride, a, b, out, rows, C))
#define GATED_SUM_BACKWARD(X) const X *grad, const X *gate, const X *a, const X *b, X *grad_gate, X *grad_sum, long count
FOR_BOTH(gated_sum_backward, GATED_SUM_BACKWARD, LIST(grad, gate, a, b, grad_gate, grad_sum, count))
#define MOVE(X) const X *x, long stride, const float *matrices, const float *table, X *out, long tokens, long heads, long D, float sign
FOR_BOTH(move, MOVE, LIST(x, stride, matrices, table, out, tokens, heads, D, sign))
#define SHORT_CONV(X) \
    const X *x, long stride, const X *past, const X *future, const float *weight, const int64_t *ends, X *out, long B, long T, long S, long C
FOR_BOTH(short_conv, SHORT_CONV, LIST(x, stride, past, future, weight, ends, out, B, T, S, C))
#define SHORT_CONV_BACKWARD(X) \
    const X *grad, const X *x, long stride, const X *past, const X *future, const float *weight, const int64_t *ends, X *grad_x, \
        X *grad_past, X *grad_future, float *grad_weight, long B, long T, long S, long C
FOR_BOTH(short_conv_backward, SHORT_CONV_BACKWARD,
         LIST(grad, x, stride, past, future, weight, ends, grad_x, grad_past, grad_future, grad_weight, B, T, S, C))
#define GATED_MIX(X) const X *x, const float *weight, const float *bias, X *mixed, X *out, long images, long H, long W, long E
FOR_BOTH(gated_mix, GATED_MIX, LIST(x, weight, bias, mixed, out, images, H, W, E))
#define GATED_MIX_BACKWARD(X) \
    const X *grad, const X *x, const X *mixed, const float *weight, X *grad_mixed, X *grad_x, float *grad_weight, float *grad_bias, \
        long images, long H, long W, long E
FOR_BOTH(gated_mix_backward, GATED_MIX_BACKWARD,
         LIST(grad, x, mixed, weight, grad_mixed, grad_x, grad_weight, grad_bias, images, H, W, E))
#define DELTA(X) \
    const X *q, const X *k, const X *v, long stride_v, const float *beta, const float *decay, const float *table, const float *matrix, \
        const float *z, const int64_t *ends, X *out, float *next_matrix, float *next_z, long B, long T, long S, long heads, long D
FOR_BOTH(delta, DELTA, LIST(q, k, v, stride_v, beta, decay, table, matrix, z, ends, out, next_matrix, next_z, B, T, S, heads, D))
#define DELTA_BACKWARD(X) \
    const X *grad, const float *grad_after, const float *grad_row, const X *q, const X *k, const X *v, const float *beta, const float *decay, \
        const float *table, const float *matrix, const float *z, const int64_t *ends, X *grad_q, X *grad_k, X *grad_v, float *grad_beta, \
        float *grad_decay, float *grad_matrix, float *grad_z, long B, long T, long S, long heads, long D
FOR_BOTH(delta_backward, DELTA_BACKWARD,
         LIST(grad, grad_after, grad_row, q, k, v, beta, decay, table, matrix, z, ends, grad_q, grad_k, grad_v, grad_beta, grad_decay, grad_matrix,
              grad_z, B, T, S, heads, D))
#define MEAN_GROWTH(X) const X *before, const X *after, float *out, long frames, long S, long heads, long D
FOR_BOTH(mean_growth, MEAN_GROWTH, LIST(before, after, out, frames, S, heads, D))
#define ATTEND(X) \
    const X *q, const int64_t *q_steps, const X *const *k, const int64_t *k_steps, const X *const *v, const int64_t *v_steps, \
        const int64_t *lengths, long parts, const uint8_t *allowed, X *out, long B, long heads, long N, long D, float scale
FOR_BOTH(attend, ATTEND, LIST(q, q_steps, k, k_steps, v, v_steps, lengths, parts, allowed, out, B, heads, N, D, scale))
#define ATTEND_BACKWARD(X) \
    const X *grad, const X *q, const X *k, const X *v, const uint8_t *allowed, X *grad_q, X *grad_k, X *grad_v, long B, long heads, long N, \
        long L, long D, float scale
FOR_BOTH(attend_backward, ATTEND_BACKWARD, LIST(grad, q, k, v, allowed, grad_q, grad_k, grad_v, B, heads, N, L, D, scale))

// How many lanes a vector has: D, C and E / 2 must be multiples of it. -DLANES makes them fewer than the processor has.
extern "C" __attribute__((visibility("default"))) int lanes() { return V; }
