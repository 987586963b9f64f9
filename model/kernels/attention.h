// Softmax attention of few tokens, forward and backward.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "products.h"
#include "vectors.h"

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
