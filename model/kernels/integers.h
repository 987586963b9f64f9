// What stands around a product of bytes: rows of activations to bytes with a scale each, and sums of products back to activations.

#pragma once

#include <cmath>

#include "vectors.h"

// formats.encode in "int8": codes = x / (largest of the row / 127), to the nearest, ties to even.
template <class X>
static void round_rows(const X* x, long stride, int8_t* codes, float* scales, long rows, long C) {
    for (long r = 0; r < rows; r++, x += stride, codes += C) {
        vf top = {}, nan = {};
        for (long c = 0; c < C; c += V) {
            vf v = load(x + c);
            nan += v != v ? splat(1.0f) : vf{};
            top = larger(top, larger(v, -v));
        }
        float largest = 0;
        for (int i = 0; i < V; i++) largest = top[i] > largest ? top[i] : largest;
        largest = largest < 0x1p127f ? largest : 0x1p127f;
        float scale = total(nan) ? NAN : (float)((double)largest / 127);
        scales[r] = scale;
        // In double, for the compiler may multiply by an inverse instead of dividing: what becomes a float is the quotient's.
        double inverse = scale > 0 ? 1 / (double)scale : 0;
        for (long c = 0; c < C; c++) {
            float v = value(x[c]);
            v = v < 0x1p127f ? v : 0x1p127f;
            v = v > -0x1p127f ? v : -0x1p127f;
            codes[c] = (int8_t)std::rint((float)(v * inverse));
        }
    }
}

// out = base + f(sums * of its column * of its row + bias), f silu if asked; without bias or base where they are null.
template <class X>
static void scale_sums(const int32_t* sums, const float* columns, const float* scales, const float* bias, const X* base, X* out, long rows,
                       long N, int silu) {
    for (long r = 0; r < rows; r++)
        for (long c = 0; c < N; c += V, sums += V, out += V) {
            vi whole;
            std::memcpy(&whole, sums, sizeof whole);
            vf v = __builtin_convertvector(whole, vf) * load(columns + c) * scales[r];
            if (bias) v += load(bias + c);
            if (silu) v *= sigmoid(v);
            if (base) v += load(base + r * N + c);
            store(out, v);
        }
}
