// The two gates of a block, forward and backward.

#pragma once

#include <vector>

#include "vectors.h"

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
