// The gated delta rule of a whole pass, a head at a time.

#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "products.h"
#include "rays.h"
#include "vectors.h"

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
