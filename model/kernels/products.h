// Products of small matrices of floats, as many as fit the registers at a time.

#pragma once

#include "vectors.h"

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
