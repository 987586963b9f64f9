// Gradients of the gated delta rule, a head at a time; the forward states are computed again.

#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "delta_rule.h"

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
