// What the tape and the kernels agree on: the step being run, and one table of bodies per instruction set.
// Rule: nothing here may be an inline function with external linkage (see team.h).
#pragma once
#include "ridgeline.h"
#include "team.h"

namespace ridgeline {

struct Step {
  uint8_t* arena;
  uint8_t* scratch;
  int64_t scratch_bytes;
  const RlPool* pools;  // by group
  const RlBatch* batch;
};

typedef void (*Kernel)(Worker& worker, const Step& step, const RlInstr& in);

struct Kernels {
  Kernel op[RL_OP_END];  // indexed by RlOp; 0 is unused
  double (*read)(const void* data, int64_t bytes);                   // a checksum, so that nothing is optimised away
  double (*arithmetic)(int kind, int64_t iterations, double* operations);  // likewise; kinds of rl_measure_flops
};

extern const Kernels kernels_plain;
#if RL_X86
extern const Kernels kernels_avx2, kernels_avx512;
#endif

// ---- small shared arithmetic; static: every object gets its own copy

#define RL_INLINE static inline __attribute__((always_inline))
#define RL_SUPER 256  // columns of a block of the k formats: 8 groups

RL_INLINE int64_t round_up(int64_t value, int64_t multiple) { return (value + multiple - 1) / multiple * multiple; }
constexpr int QUANT_BYTES = 88;  // of a row in a group of 32 quantised activations (quantise.h)
RL_INLINE int64_t quant_stride(int64_t width) { return round_up(width / RL_GROUP * QUANT_BYTES, 64); }
RL_INLINE int row_count(const Step& step, const RlInstr& in) {
  return in.per_logit_row ? step.batch->logit_rows : step.batch->tokens;
}
RL_INLINE float* floats(const Step& step, int64_t offset) { return reinterpret_cast<float*>(step.arena + offset); }

// Recurrent state of batch entry `sequence` in this instruction's layer.
RL_INLINE float* state_of(const Step& step, const RlInstr& in, int64_t sequence) {
  const RlBatch& batch = *step.batch;
  return reinterpret_cast<float*>(batch.state + batch.state_slot[sequence] * batch.slot_stride +
                                  in.layer * batch.state_layer_stride);
}

// Of RL_KV_CLOSED: tokens of a block, and the first ones that stay in bf16.
constexpr bool is_closed(int storage) { return (storage & 255) == RL_KV_CLOSED; }
constexpr int block_of_storage(int storage) { return (storage >> 8 & 255) * RL_BLOCK_TOKENS; }
constexpr int sinks_of_storage(int storage) { return storage >> 16 & 255; }

constexpr int kind_of(int format) { return format & 255; }
constexpr int option_of(int format) { return format >> 8 & 15; }
constexpr bool is_affine(int kind) { return kind >= RL_INT8 && kind <= RL_INT4_ZERO; }
constexpr bool has_zero(int kind) { return kind == RL_INT8_ZERO || kind == RL_INT4_ZERO; }
constexpr bool is_four(int kind) { return kind == RL_INT4 || kind == RL_INT4_ZERO; }
constexpr bool is_plain(int kind) { return kind == RL_F32 || kind == RL_BF16 || kind == RL_F16; }
constexpr bool is_float8(int kind) { return kind == RL_E4M3 || kind == RL_E5M2; }
enum { SCALE_F16 = 0, SCALE_BF16 = 1, SCALE_F32 = 2 };   // options of affine kinds
enum { UNIT_TENSOR = 0, UNIT_ROW = 1, UNIT_BLOCK = 2 };  // options of float8 kinds
#define RL_EDGE 128  // rows and columns of a block

// Affine kinds: columns of a group, groups of a row, bytes of a scale.
RL_INLINE int64_t group_columns(int format, int64_t columns) {
  const int64_t group = static_cast<int64_t>(format >> 12) * RL_GROUP;
  return group == 0 || group > columns ? columns : group;
}
RL_INLINE int64_t group_count(int format, int64_t columns) {
  const int64_t group = group_columns(format, columns);
  return (columns + group - 1) / group;
}
RL_INLINE int64_t scale_bytes(int format) { return option_of(format) == SCALE_F32 ? 4 : 2; }
// Zeros of 16 rows: a byte each; of four bits two groups share one.
RL_INLINE int64_t zero_bytes(int format, int64_t groups) {
  return !has_zero(kind_of(format)) ? 0 : RL_TILE_ROWS * (is_four(kind_of(format)) ? (groups + 1) / 2 : groups);
}
// Scales, then zeros, of one tile.
RL_INLINE int64_t tile_parameter_bytes(int format, int64_t columns) {
  const int64_t groups = group_count(format, columns);
  return groups * RL_TILE_ROWS * scale_bytes(format) + zero_bytes(format, groups);
}

// Columns that a format stores together; 1: any number of columns, read as f32. 0: unknown format.
RL_INLINE int columns_in_block(int format) {
  switch (kind_of(format)) {
    case RL_F32: case RL_BF16: case RL_F16: case RL_E4M3: case RL_E5M2: return 1;
    case RL_INT8: case RL_INT8_ZERO: case RL_INT4: case RL_INT4_ZERO:
    case RL_Q8_0: case RL_Q4_1: case RL_Q4_0: case RL_Q5_0: return RL_GROUP;
    case RL_Q4_K: case RL_Q6_K: return RL_SUPER;
  }
  return 0;
}

// Bytes of one such block in a file.
RL_INLINE int block_bytes(int format) {
  switch (kind_of(format)) {
    case RL_E4M3: case RL_E5M2: return 1;
    case RL_INT8: case RL_INT8_ZERO: return 32;
    case RL_INT4: case RL_INT4_ZERO: return 16;
    case RL_F32: return 4;
    case RL_BF16: case RL_F16: return 2;
    case RL_Q8_0: return 34;
    case RL_Q4_1: return 20;
    case RL_Q4_0: return 18;
    case RL_Q5_0: return 22;
    case RL_Q4_K: return 144;
    case RL_Q6_K: return 210;
  }
  return 0;
}

// Bytes of one packed tile of RL_TILE_ROWS rows (pack.cpp): as long as the file's rows, but for what stands behind all
// tiles (below); -1: not a shape of this format.
RL_INLINE int64_t tile_bytes(int format, int64_t columns) {
  const int block = columns_in_block(format), kind = kind_of(format);
  if (format < 0 || block == 0 || columns % block) return -1;
  if (format > 255 && !is_affine(kind) && !(is_float8(kind) && format < 4096)) return -1;
  if (option_of(format) > 2) return -1;
  const int pad = kind == RL_BF16 ? 2 : is_float8(kind) ? 4 : 1;
  return round_up(columns, pad) / block * block_bytes(format) * RL_TILE_ROWS;
}
// Behind all tiles: parameters of affine kinds, tile by tile, or the f32 scales of float8 kinds.
RL_INLINE int64_t parameter_bytes(int format, int64_t rows, int64_t columns) {
  const int64_t tiles = (rows + RL_TILE_ROWS - 1) / RL_TILE_ROWS;
  if (is_affine(kind_of(format))) return tiles * tile_parameter_bytes(format, columns);
  if (!is_float8(kind_of(format))) return 0;
  if (option_of(format) == UNIT_TENSOR) return 4;
  if (option_of(format) == UNIT_ROW) return tiles * RL_TILE_ROWS * 4;
  return 4 * ((rows + RL_EDGE - 1) / RL_EDGE) * ((columns + RL_EDGE - 1) / RL_EDGE);
}

// Tiles of formats with one f16 scale a block keep their blocks in pairs: two rows of 16 scales, then the two bodies, so that
// bodies begin on cache lines (a 64-byte load across two lines costs two). An odd last block stands alone.
RL_INLINE int64_t pair_scales(int64_t block, int64_t body) { return (block >> 1) * (64 + 2 * body) + (block & 1) * 32; }
RL_INLINE int64_t pair_body(int64_t block, int64_t blocks, int64_t body) {
  return (block >> 1) * (64 + 2 * body) + ((block | 1) == blocks ? 32 : 64 + (block & 1) * body);
}
// Bodies of 16 rows, and where their parts begin (pack.cpp).
constexpr int Q8_0_BODY = 512, Q4_0_BODY = 256;
constexpr int Q5_0_BODY = 320, Q5_0_NIBBLES = 64;  // high bits first
constexpr int Q4_K_BODY = 2304, Q4_K_SCALES = 64, Q4_K_NIBBLES = 256, Q4_K_GROUP = 256;  // d and dmin are in the body
constexpr int Q6_K_BODY = 3328, Q6_K_NIBBLES = 256, Q6_K_GROUP = 384, Q6_K_HIGH = 256;   // high bits end each group
RL_INLINE int64_t q8_scales(int64_t g) { return pair_scales(g, Q8_0_BODY); }
RL_INLINE int64_t q8_quants(int64_t g, int64_t groups) { return pair_body(g, groups, Q8_0_BODY); }

// Rows [begin, end) of `thread`: a pure function of its arguments, so that consecutive row-wise operators give the same
// rows to the same thread and need no barrier between them (tape.cpp).
RL_INLINE void share(int64_t count, const Worker& worker, int64_t& begin, int64_t& end) {
  begin = count * worker.thread / worker.threads;
  end = count * (worker.thread + 1) / worker.threads;
}

// Scratch of sampling, per thread: adjusted logits, two arrays of sort keys, a histogram.
RL_INLINE int64_t sample_scratch_bytes(int64_t vocabulary) { return round_up(vocabulary * 20, 64) + 65536; }
// Scratch of one (row, split) of attention: max, sum, weighted values.
RL_INLINE int64_t partial_floats(int64_t head_dim) { return round_up(head_dim, 16) + 16; }

// Scratch of attention that keeps mass: maximum and sum of every row, behind all else.
RL_INLINE int64_t mass_scratch_bytes(int64_t tokens, int64_t heads) { return round_up(tokens * heads * 8, 64); }

}  // namespace ridgeline
