// Matrix products: weights times the columns of a chunk. A column is one token of LANES galaxies.
#pragma once
#include <type_traits>
#include <vector>

#include "vectors.h"

// Sums of ROWS outputs for 3 columns fill the vector registers, and each weight that is read is used 3 times.
constexpr int ROWS = LANES == 16 ? 8 : 4;

// A linear layer. Weights are (outputs / ROWS, inputs, ROWS), so that a product reads them one after the other.
struct Layer {
    std::vector<float> weights, bias;

    // `weight` is (outputs, inputs), and `order` says which of its outputs is at each place, if they are not in order.
    Layer(const float *weight, const float *bias_, int outputs, int inputs, const int *order = nullptr)
        : weights(size_t(outputs) * inputs), bias(outputs) {
        for (int row = 0; row < outputs; row++) {
            int from = order ? order[row] : row;
            bias[row] = bias_ ? bias_[from] : 0.0f;
            for (int k = 0; k < inputs; k++)
                weights[(size_t(row / ROWS) * inputs + k) * ROWS + row % ROWS] = weight[size_t(from) * inputs + k];
        }
    }
};

// The outputs for `columns` columns of `x` (columns, inputs), ROWS at a time: finish(first row, column, sums[ROWS]).
template <int inputs, int columns, class Finish>
INLINE void multiply_columns(const Layer &layer, int outputs, const Vector *x, Finish finish) {
    const float *weight = layer.weights.data();
    for (int row = 0; row < outputs; row += ROWS) {
        Vector sums[columns][ROWS];
        UNROLL for (int c = 0; c < columns; c++)
            UNROLL for (int i = 0; i < ROWS; i++) sums[c][i] = all(layer.bias[row + i]);
        for (int k = 0; k < inputs; k++, weight += ROWS) {
            Vector value[columns];
            UNROLL for (int c = 0; c < columns; c++) value[c] = x[c * inputs + k];
            UNROLL for (int i = 0; i < ROWS; i++)
                UNROLL for (int c = 0; c < columns; c++) sums[c][i] += weight[i] * value[c];
        }
        UNROLL for (int c = 0; c < columns; c++) finish(row, c, sums[c]);
    }
}

// Call body(first column, number of columns) for 3 columns at a time, and for the 1 or 2 that are left; the number is a
// constant of the compiler.
template <int columns, class Body>
INLINE void each_three(Body body) {
    for (int c = 0; c + 3 <= columns; c += 3) body(c, std::integral_constant<int, 3>());
    if constexpr (columns % 3 != 0) body(columns - columns % 3, std::integral_constant<int, columns % 3>());
}
