// RMS norm, and layer norm with a frame's scale and shift, forward and backward.

#pragma once

#include <cmath>

#include "vectors.h"

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
