// The network's small operations on a CPU: one pass over memory each, where plain torch takes several and leaves vectors half empty.
// Every function names the plain torch function that it must equal. Tensors are contiguous unless a stride is passed; T is float or
// bfloat16, sums are kept in float. Letters: B batch, T frames, S tokens per frame, h heads, D head size, C = h D, E channels.
//
// One thread computes a call. A small network gains nothing from more, see cores.py.

#include "attention.h"
#include "delta_rule.h"
#include "delta_rule_backward.h"
#include "gates.h"
#include "integers.h"
#include "norms.h"
#include "rays.h"
#include "short_conv.h"

// What Python calls: every function for both types.

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

#define ROUND_ROWS(X) const X *x, long stride, int8_t *codes, float *scales, long rows, long C
FOR_BOTH(round_rows, ROUND_ROWS, LIST(x, stride, codes, scales, rows, C))
#define SCALE_SUMS(X) \
    const int32_t *sums, const float *columns, const float *scales, const float *bias, const X *base, X *out, long rows, long N, int silu
FOR_BOTH(scale_sums, SCALE_SUMS, LIST(sums, columns, scales, bias, base, out, rows, N, silu))

// How many lanes a vector has: D, C and E / 2 must be multiples of it. -DLANES makes them fewer than the processor has.
extern "C" __attribute__((visibility("default"))) int lanes() { return V; }
