// Vectors of one value for each of LANES galaxies, and the functions of them that the encoder needs.
//
// All code is written for one galaxy; the compiler's vector types make it LANES galaxies, so that neither LayerNorm nor
// softmax needs a sum across a register, and every galaxy is computed alike wherever it lies. NaN in gives NaN out.
#pragma once
#include <cmath>
#include <cstdint>

#include "gelu.h"

#define ALWAYS_INLINE __attribute__((always_inline))
#define INLINE static inline ALWAYS_INLINE
#if defined(PLAIN_TILES) || defined(__SANITIZE_ADDRESS__)
#define UNROLL  // what is made for tests is to compile fast
#else
#define UNROLL _Pragma("GCC unroll 32")
#endif

// Parts into which a product splits its operands: 0 are float32, 1 is bfloat16, 2 are a high and a low bfloat16.
#ifndef TILE_PARTS
#define TILE_PARTS 0
#endif

#if defined(__AVX512F__) || TILE_PARTS
constexpr int LANES = 16;  // also what a row of a tile holds
#else
constexpr int LANES = 8;
#endif
typedef float Vector __attribute__((vector_size(4 * LANES)));
typedef int32_t Integers __attribute__((vector_size(4 * LANES)));

constexpr float LOG2_E = 1.44269504088896341f;

INLINE Vector all(float value) { return value - Vector{}; }  // + would have to care for -0

INLINE Vector at_most(Vector a, float limit) { return a > limit ? all(limit) : a; }  // also below, NaN stays NaN

INLINE Vector at_least(Vector a, float limit) { return a < limit ? all(limit) : a; }

INLINE Vector square_root(Vector a) {
    for (int lane = 0; lane < LANES; lane++) a[lane] = std::sqrt(a[lane]);
    return a;
}

// The functions below take `count` independent vectors, whose operations the processor does side by side.

// Replace t by 2^t for t <= 127, with a relative error of 2e-7: a polynomial for the fraction, and the exponent's bits.
// Below 2^-126 the result is 2^-126 instead.
template <int count>
INLINE void exp2_of(Vector *t) {
    constexpr float ROUNDING = 12582912.0f;  // 1.5 * 2^23: adding it leaves whole numbers
    Vector whole[count], rest[count], p[count];
    UNROLL for (int i = 0; i < count; i++) t[i] = at_least(t[i], -126.0f);
    UNROLL for (int i = 0; i < count; i++) whole[i] = t[i] + ROUNDING;
    UNROLL for (int i = 0; i < count; i++) rest[i] = t[i] - (whole[i] - ROUNDING);
    UNROLL for (int i = 0; i < count; i++) p[i] = 1.54353e-4f * rest[i] + 1.33336e-3f;
    UNROLL for (int i = 0; i < count; i++) p[i] = p[i] * rest[i] + 9.6181291e-3f;
    UNROLL for (int i = 0; i < count; i++) p[i] = p[i] * rest[i] + 5.55041087e-2f;
    UNROLL for (int i = 0; i < count; i++) p[i] = p[i] * rest[i] + 2.40226507e-1f;
    UNROLL for (int i = 0; i < count; i++) p[i] = p[i] * rest[i] + 6.93147181e-1f;
    UNROLL for (int i = 0; i < count; i++) p[i] = p[i] * rest[i] + 1.0f;
    // A product, since adding to the exponent of a NaN would give a number.
    UNROLL for (int i = 0; i < count; i++) t[i] = p[i] * (Vector)(((Integers)whole[i] << 23) + 0x3f800000);
}

// Replace x by x / (1 + e^-x).
template <int count>
INLINE void silu(Vector *x) {
    Vector t[count];
    UNROLL for (int i = 0; i < count; i++) t[i] = at_most(x[i] * -LOG2_E, 126.0f);
    exp2_of<count>(t);
    UNROLL for (int i = 0; i < count; i++) x[i] = x[i] / (1.0f + t[i]);
}

// Replace x by x Phi(x), Phi being the normal distribution: Phi(x) - 1/2 is x times a polynomial of x^2 (gelu.py).
template <int count>
INLINE void gelu(Vector *x) {
    constexpr int degree = sizeof(GELU) / sizeof(float) - 1;
    Vector y[count], s[count], p[count];
    UNROLL for (int i = 0; i < count; i++) y[i] = at_most(at_least(x[i], -GELU_RANGE), GELU_RANGE);
    UNROLL for (int i = 0; i < count; i++) s[i] = y[i] * (2.0f / (GELU_RANGE * GELU_RANGE));
    UNROLL for (int i = 0; i < count; i++) s[i] = s[i] * y[i] - 1.0f;
    UNROLL for (int i = 0; i < count; i++) p[i] = GELU[degree] * s[i] + GELU[degree - 1];
    UNROLL for (int power = degree - 2; power >= 0; power--)
        UNROLL for (int i = 0; i < count; i++) p[i] = p[i] * s[i] + GELU[power];
    UNROLL for (int i = 0; i < count; i++) x[i] *= y[i] * p[i] + 0.5f;
}
