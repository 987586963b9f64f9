// Rotary positions and the move between ray frames. The gradient is the same operation with the transposed map.

#pragma once

#include <vector>

#include "vectors.h"

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
