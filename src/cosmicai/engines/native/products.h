// Matrix products: weights times the columns of a chunk. A column is one token of LANES galaxies.
//
// There are two kinds with the same interface. In float32 weights and columns are as they are. By tiles they are
// bfloat16, or each is split into a high and a low bfloat16, whose products high * high + high * low + low * high are
// float32's but for the last bits.
#pragma once
#include <algorithm>
#include <type_traits>
#include <vector>

#include "memory.h"
#include "tiles.h"

constexpr int ROWS = LANES == 16 ? 8 : 4;  // outputs that are finished at a time

#if TILE_PARTS == 0

// Sums of ROWS outputs for 3 columns fill the vector registers, and each weight that is read is used 3 times.
constexpr int SETS = 1, BLOCK = 3;  // sets of LANES galaxies in a chunk, columns that are multiplied at a time

typedef float Weight;
typedef Vector Operand;  // columns are (columns, inputs)

// Number of elements of `columns` columns of an operand.
constexpr size_t operand_size(int columns, int inputs) { return size_t(columns) * inputs; }

// Put `count` values at inputs `k` and up of a column.
template <int count>
INLINE void store_operand(Operand *x, int inputs, int column, int k, const Vector *values) {
    UNROLL for (int i = 0; i < count; i++) x[size_t(column) * inputs + k + i] = values[i];
}

// Weights are (outputs / ROWS, inputs, ROWS), so that a product reads them one after the other.
INLINE void pack_weight(Weight *packed, int inputs, int row, int k, float value) {
    packed[(size_t(row / ROWS) * inputs + k) * ROWS + row % ROWS] = value;
}

constexpr size_t weight_size(int outputs, int inputs) { return size_t(outputs) * inputs; }

#else

// Four sums are in tiles at a time, of 32 outputs and 2 columns. BLOCK columns stay in the first cache while the
// weights pass, and with two sets of galaxies no column is left alone.
constexpr int SETS = 2, BLOCK = 4;

typedef Half Weight;
typedef Half Operand;  // columns are (columns, inputs / 32, TILE_PARTS) tiles of (16 pairs of inputs, LANES, 2)

constexpr size_t operand_size(int columns, int inputs) { return size_t(columns) * inputs * LANES * TILE_PARTS; }

template <int count>
INLINE void store_operand(Operand *x, int inputs, int column, int k, const Vector *values) {
    UNROLL for (int i = 0; i < count; i += 2) {
        size_t tile = (size_t(column) * (inputs / TILE_INPUTS) + (k + i) / TILE_INPUTS) * TILE_PARTS;
        Operand *to = x + tile * TILE + (k + i) % TILE_INPUTS * LANES;
        Integers high = round_pairs(values[i], values[i + 1]);
        std::memcpy(to, &high, sizeof high);
        if (TILE_PARTS == 2) {
            Integers low = round_pairs(values[i] - (Vector)(high << 16), values[i + 1] - (Vector)(high & ~0xffff));
            std::memcpy(to + TILE, &low, sizeof low);
        }
    }
}

// Weights are (outputs / 16, inputs / 32, TILE_PARTS) tiles of (16 outputs, 32 inputs).
INLINE void pack_weight(Weight *packed, int inputs, int row, int k, float value) {
    size_t tile = (size_t(row / TILE_ROWS) * (inputs / TILE_INPUTS) + k / TILE_INPUTS) * TILE_PARTS;
    Weight *to = packed + tile * TILE + row % TILE_ROWS * TILE_INPUTS + k % TILE_INPUTS;
    for (int part = 0; part < TILE_PARTS; part++) {
        Integers rounded = round_pairs(all(value), all(0.0f));
        to[part * TILE] = Half(rounded[0]);
        Integers wide = rounded << 16;
        value -= ((Vector)wide)[0];
    }
}

constexpr size_t weight_size(int outputs, int inputs) { return size_t(outputs) * inputs * TILE_PARTS; }

#endif

// A linear layer with packed weights.
struct Layer {
    Weight *weights;  // of the arena, as the bias
    float *bias;

    // `weight` is (outputs, stride), of which the first `inputs` columns are used; without a bias it is 0. `order` says
    // which of its outputs is at each place, if they are not in order.
    Layer(Arena &arena, const float *weight, const float *bias_, int outputs, int inputs, int stride,
          const int *order = nullptr)
        : weights(arena.allocate<Weight>(weight_size(outputs, inputs))), bias(arena.allocate<float>(outputs)) {
        for (int row = 0; row < outputs; row++) {
            int from = order ? order[row] : row;
            bias[row] = bias_ ? bias_[from] : 0.0f;
            for (int k = 0; k < inputs; k++)
                pack_weight(weights, inputs, row, k, weight[size_t(from) * stride + k]);
        }
    }
};

#if TILE_PARTS == 0

// The outputs `first` to `last` for `columns` columns of `x`, ROWS at a time: finish(row, column, sums[ROWS]).
template <int inputs, int columns, class Finish>
INLINE void multiply_columns(const Layer &layer, int first, int last, const Operand *x, Finish finish) {
    const float *weight = layer.weights + size_t(first) * inputs;
    for (int row = first; row < last; row += ROWS) {
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

#else

// Add the products of two tiles of weights and the tiles of one or two columns, each `weight_stride` and
// `column_stride` values apart, to the sums: tiles 0 and 1 are the first column's, 2 and 3 the second's.
template <bool two_columns, bool new_weights>
INLINE void multiply_step(const Weight *weight, size_t weight_stride, const Operand *x, size_t column_stride) {
    if (new_weights) load_tile<4>(weight);
    load_tile<6>(x);
    multiply_tiles<0, 4, 6>();
    if (new_weights) load_tile<5>(weight + weight_stride);
    multiply_tiles<1, 5, 6>();
    if (two_columns) {
        load_tile<7>(x + column_stride);
        multiply_tiles<2, 4, 7>();
        multiply_tiles<3, 5, 7>();
    }
}

// The sums of 32 outputs for one or two columns, in tiles 0 to 3.
template <int inputs, bool two_columns>
INLINE void multiply_block(const Weight *weight, const Operand *x) {
    constexpr size_t stride = size_t(inputs) * TILE_ROWS * TILE_PARTS;
    clear_tile<0>();
    clear_tile<1>();
    clear_tile<2>();
    clear_tile<3>();
    for (int k = 0; k < inputs; k += TILE_INPUTS, weight += TILE_PARTS * TILE, x += TILE_PARTS * TILE) {
        if (TILE_PARTS == 2) {  // the small products first, as it is a little more exact
            multiply_step<two_columns, true>(weight + TILE, stride, x, stride);
            multiply_step<two_columns, true>(weight, stride, x + TILE, stride);
        }
        multiply_step<two_columns, TILE_PARTS == 1>(weight, stride, x, stride);
    }
}

// The outputs `first` to `last` for `columns` columns of `x`, ROWS at a time: finish(row, column, sums[ROWS]).
template <int inputs, int columns, class Finish>
INLINE void multiply_columns(const Layer &layer, int first, int last, const Operand *x, Finish finish) {
    static_assert(inputs % TILE_INPUTS == 0 && sizeof(Vector) * TILE_ROWS == 2 * TILE, "whole tiles");
    constexpr size_t column_size = operand_size(1, inputs);
    for (int row = first; row < last; row += 2 * TILE_ROWS) {
        const Weight *weight = layer.weights + weight_size(row, inputs);
        for (int c = 0; c < columns; c += 2) {
            Vector sums[2][2 * TILE_ROWS];
            const int width = std::min(2, columns - c);
            if (width == 2)
                multiply_block<inputs, true>(weight, x + c * column_size);
            else
                multiply_block<inputs, false>(weight, x + c * column_size);
            store_tile<0>(sums[0]);
            store_tile<1>(sums[0] + TILE_ROWS);
            store_tile<2>(sums[1]);
            store_tile<3>(sums[1] + TILE_ROWS);
            for (int own = 0; own < width; own++)
                for (int i = 0; i < 2 * TILE_ROWS; i += ROWS) {
                    Vector biased[ROWS];
                    UNROLL for (int j = 0; j < ROWS; j++) biased[j] = sums[own][i + j] + layer.bias[row + i + j];
                    finish(row + i, c + own, biased);
                }
        }
    }
}

#endif

// Call body(first column, number of columns) for BLOCK columns at a time, and for the fewer that are left; the number
// is a constant of the compiler.
template <int columns, class Body>
INLINE void each_block(Body body) {
    for (int c = 0; c + BLOCK <= columns; c += BLOCK) body(c, std::integral_constant<int, BLOCK>());
    if constexpr (columns % BLOCK != 0)
        body(columns - columns % BLOCK, std::integral_constant<int, columns % BLOCK>());
}
