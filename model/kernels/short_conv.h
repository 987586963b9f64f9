// The key convolution over time, forward and backward.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "vectors.h"

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
