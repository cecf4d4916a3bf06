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
  const RlPool* pool;
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

RL_INLINE int64_t round_up(int64_t value, int64_t multiple) { return (value + multiple - 1) / multiple * multiple; }
RL_INLINE int64_t quant_stride(int64_t width) { return round_up(width + width / RL_GROUP * 8, 64); }
RL_INLINE int row_count(const Step& step, const RlInstr& in) {
  return in.per_logit_row ? step.batch->logit_rows : step.batch->tokens;
}
RL_INLINE float* floats(const Step& step, int64_t offset) { return reinterpret_cast<float*>(step.arena + offset); }

// Bytes of one packed tile of RL_TILE_ROWS rows (pack.cpp); -1: unknown format.
RL_INLINE int64_t tile_bytes(int format, int64_t columns) {
  switch (format) {
    case RL_F32: return columns * 64;
    case RL_BF16: return (columns + 1) / 2 * 64;
    case RL_Q8_0: return columns / RL_GROUP * 544;
    case RL_Q4_1: return columns / RL_GROUP * 320;
  }
  return -1;
}

// Where group g of a Q8_0 tile of `groups` keeps its scales and its quants: groups in pairs, so that quants begin on cache
// lines (a 64-byte load across two lines costs two). An odd last group stands alone: tiles stay as long as the file's rows.
RL_INLINE int64_t q8_scales(int64_t g) { return (g >> 1) * 1088 + (g & 1) * 32; }
RL_INLINE int64_t q8_quants(int64_t g, int64_t groups) {
  return (g >> 1) * 1088 + ((g | 1) == groups ? 32 : 64 + (g & 1) * 512);
}

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

}  // namespace ridgeline
