// How kept keys and values lie in pages, how they come into registers, and how a token is written. One struct a storage.
// A kept vector is a row of bytes: its dimensions in order (int8 and int4: then 4 bytes of scale), the same for K and V.
// V pages hold the 16 tokens' rows one after another; K pages hold them turned round in units of 4 bytes, [unit][16 tokens],
// so that one vector load serves LANES keys whatever the storage. Quantised pages are never widened in memory: bytes become
// floats in registers (F15), and a unit's scale is applied to whole sums of products, once a key.
#pragma once
#include "quantise.h"

namespace ridgeline {
namespace {

constexpr int MAX_DIM = 256, STEP_KEYS = 64, STEP_PAGES = STEP_KEYS / RL_BLOCK_TOKENS;
constexpr int MAX_ROW_BYTES = 4 * MAX_DIM, UNIT_STRIDE = 4 * RL_BLOCK_TOKENS;

struct Pages {  // of 64 neighbouring keys
  const uint8_t* k[STEP_PAGES];
  const uint8_t* v[STEP_PAGES];
};

struct F32Pages {
  static constexpr int DIMS = 1;  // dimensions in a unit
  static constexpr bool SCALED = false, SHIFTED = false, WHOLE = false;
  static int row_bytes(int dim) { return 4 * dim; }
  RL_INLINE F part(I unit, int) { return bits(unit); }
  RL_INLINE F values(const uint8_t* row, int d, int) { return load(reinterpret_cast<const float*>(row) + d); }
  RL_INLINE F last_values(const uint8_t* row, int d, int dim) {
    return load_part(reinterpret_cast<const float*>(row) + d, dim - d);
  }
  static void write(const float* x, int dim, uint8_t* row) { memcpy(row, x, 4 * dim); }
};

struct Bf16Pages {
  static constexpr int DIMS = 2;
  static constexpr bool SCALED = false, SHIFTED = false, WHOLE = false;
  static int row_bytes(int dim) { return 2 * dim; }
  RL_INLINE F part(I unit, int i) { return bits(i ? unit & static_cast<int>(0xffff0000u) : unit << 16); }
  RL_INLINE F values(const uint8_t* row, int d, int) { return load_bf16(reinterpret_cast<const uint16_t*>(row) + d); }
  RL_INLINE F last_values(const uint8_t* row, int d, int dim) {
    return load_bf16_part(reinterpret_cast<const uint16_t*>(row) + d, dim - d);
  }
  static void write(const float* x, int dim, uint8_t* row) {
    uint16_t* to = reinterpret_cast<uint16_t*>(row);
    for (int d = 0; d < dim; d++) to[d] = float_to_bf16(x[d]);
  }
};

RL_INLINE F row_scale(const uint8_t* at) {
  float scale;
  memcpy(&scale, at, 4);
  return splat(scale);
}

// bfloat16 not above, or not below, a value.
RL_INLINE uint16_t bf16_toward(float value, bool up) {
  uint32_t word;
  memcpy(&word, &value, 4);
  const bool away = up == (word >> 31 == 0);
  return static_cast<uint16_t>((word + (away ? 0xffffu : 0u)) >> 16);
}

// x = q * scale; scale (f32, 16 bits of significand) is the largest |x| / 127 rounded up, so that q * scale is exact.
struct Int8Pages {
  static constexpr int DIMS = 4;
  static constexpr bool SCALED = true, SHIFTED = false, WHOLE = false;
  static int row_bytes(int dim) { return dim + 4; }
  RL_INLINE F part(I unit, int i) { return to_float((unit << (24 - 8 * i)) >> 24); }
  RL_INLINE F values(const uint8_t* row, int d, int dim) {
    return to_float(load_int8(reinterpret_cast<const int8_t*>(row) + d)) * row_scale(row + dim);
  }
  RL_INLINE F last_values(const uint8_t* row, int d, int dim) {
    int8_t lanes[LANES] = {};
    memcpy(lanes, row + d, dim - d);
    return to_float(load_int8(lanes)) * row_scale(row + dim);
  }
  static void write(const float* x, int dim, uint8_t* row) {
    int8_t quants[MAX_DIM + LANES];
    F most = splat(0.0f);
    for (int d = 0; d < dim; d += LANES) most = max(most, abs(d + LANES <= dim ? load(x + d) : load_part(x + d, dim - d)));
    float scale = largest(most) / 127.0f;
    uint32_t word;
    memcpy(&word, &scale, 4);
    word = scale > 1e-30f ? (word + 0xffu) & ~0xffu : 0u;
    memcpy(&scale, &word, 4);
    const F inverse = splat(word ? 1.0f / scale : 0.0f);
    for (int d = 0; d < dim; d += LANES)
      store_int8(quants + d, round_int((d + LANES <= dim ? load(x + d) : load_part(x + d, dim - d)) * inverse));
    memcpy(row, quants, dim);
    memcpy(row + dim, &scale, 4);
  }
};

// x = q * scale + low, q in 0 .. 15; both bf16, low rounded down and scale up so that nothing is cut off; q * scale is exact.
struct Int4Pages {
  static constexpr int DIMS = 8;
  static constexpr bool SCALED = true, SHIFTED = true, WHOLE = false;
  static int row_bytes(int dim) { return dim / 2 + 4; }
  RL_INLINE F part(I unit, int i) { return to_float((unit >> (4 * i)) & 15); }
  RL_INLINE F widened(I quants, const uint8_t* at) {
    uint16_t pair[2];
    memcpy(pair, at, 4);
    return fma(to_float(quants), splat(bf16_to_float(pair[0])), splat(bf16_to_float(pair[1])));
  }
  RL_INLINE F values(const uint8_t* row, int d, int dim) { return widened(load_int4(row + d / 2), row + dim / 2); }
  RL_INLINE F last_values(const uint8_t* row, int d, int dim) {
    uint8_t lanes[LANES / 2] = {};
    memcpy(lanes, row + d / 2, (dim - d) / 2);
    return widened(load_int4(lanes), row + dim / 2);
  }
  static void write(const float* x, int dim, uint8_t* row) {
    float least = x[0], most = x[0];
    for (int d = 1; d < dim; d++) {
      least = x[d] < least ? x[d] : least;
      most = x[d] > most ? x[d] : most;
    }
    uint16_t pair[2] = {0, bf16_toward(least, false)};
    pair[0] = bf16_toward((most - bf16_to_float(pair[1])) / 15.0f, true);
    const float scale = bf16_to_float(pair[0]);
    const F low = splat(bf16_to_float(pair[1])), inverse = splat(scale > 1e-30f ? 1.0f / scale : 0.0f);
    int8_t quants[MAX_DIM + LANES];
    for (int d = 0; d < dim; d += LANES) {
      const F part = ((d + LANES <= dim ? load(x + d) : load_part(x + d, dim - d)) - low) * inverse;
      store_int8(quants + d, round_int(min(max(part, splat(0.0f)), splat(15.0f))));
    }
    for (int d = 0; d < dim; d += 2) row[d / 2] = static_cast<uint8_t>(quants[d] | quants[d + 1] << 4);
    memcpy(row + dim / 2, pair, 4);
  }
};

// 64 keys of a storage as floats: K pages [dimension][16 tokens] (then the units of scales as they are), V pages [16 rows].
// Many rows read a step of keys: what they would each unfold is unfolded once. Products and their order are the storage's
// own, so every bit is.
template <class S>
struct WidePages {
  static constexpr int DIMS = 1;
  static constexpr bool SCALED = S::SCALED, SHIFTED = S::SHIFTED, WHOLE = false;
  static int row_bytes(int dim) { return 4 * dim; }
  RL_INLINE F part(I unit, int) { return bits(unit); }
  RL_INLINE F values(const uint8_t* row, int d, int) { return load(reinterpret_cast<const float*>(row) + d); }
  RL_INLINE F last_values(const uint8_t* row, int d, int dim) {
    return load_part(reinterpret_cast<const float*>(row) + d, dim - d);
  }
};

struct alignas(64) WideStep {
  uint8_t k[STEP_PAGES][UNIT_STRIDE * (MAX_DIM + 1)];
  float v[STEP_PAGES][RL_BLOCK_TOKENS * MAX_DIM];
};

template <class S>
void widen(const Pages& from, int dim, WideStep& to, Pages& wide) {
  const int64_t bytes = S::row_bytes(dim);
  for (int page = 0; page < STEP_PAGES; page++) {
    wide.k[page] = to.k[page];
    wide.v[page] = reinterpret_cast<const uint8_t*>(to.v[page]);
    for (int at = 0; at < UNIT_STRIDE; at += 4 * LANES) {
      const uint8_t* unit = from.k[page] + at;
      uint8_t* lanes = to.k[page] + at;
      for (int d = 0; d < dim; d += S::DIMS, unit += UNIT_STRIDE) {
        const I whole = load_int(unit);
#pragma GCC unroll 8
        for (int i = 0; i < S::DIMS; i++, lanes += UNIT_STRIDE) store(reinterpret_cast<float*>(lanes), S::part(whole, i));
      }
      if constexpr (S::SCALED) store(reinterpret_cast<float*>(lanes), bits(load_int(unit)));
    }
    for (int token = 0; token < RL_BLOCK_TOKENS; token++) {
      const uint8_t* row = from.v[page] + token * bytes;
      float* values = to.v[page] + token * dim;
      int d = 0;
      for (; d + LANES <= dim; d += LANES) store(values + d, S::values(row, d, dim));
      if (d < dim) store_part(values + d, S::last_values(row, d, dim), dim - d);
    }
  }
}

// ---- any storage

RL_INLINE int row_bytes(int storage, int dim) {
  switch (storage) {
    case RL_KV_F32: return F32Pages::row_bytes(dim);
    case RL_KV_BF16: return Bf16Pages::row_bytes(dim);
    case RL_KV_INT8: return Int8Pages::row_bytes(dim);
    default: return Int4Pages::row_bytes(dim);
  }
}

RL_INLINE void write_row(int storage, const float* x, int dim, uint8_t* row) {
  switch (storage) {
    case RL_KV_F32: return F32Pages::write(x, dim, row);
    case RL_KV_BF16: return Bf16Pages::write(x, dim, row);
    case RL_KV_INT8: return Int8Pages::write(x, dim, row);
    default: return Int4Pages::write(x, dim, row);
  }
}

// Token `slot` of a K page, from a row, or (copy_key) from another page.
RL_INLINE void put_key(uint8_t* page, int slot, const uint8_t* row, int bytes) {
  for (int u = 0; u < bytes / 4; u++) memcpy(page + u * UNIT_STRIDE + slot * 4, row + u * 4, 4);
}
RL_INLINE void copy_key(uint8_t* page, int slot, const uint8_t* from, int from_slot, int bytes) {
  for (int u = 0; u < bytes / 4; u++) memcpy(page + u * UNIT_STRIDE + slot * 4, from + u * UNIT_STRIDE + from_slot * 4, 4);
}

// Where this group keeps the batch's tokens: [tokens].
RL_INLINE const int32_t* slots_of(const Step& step, const RlInstr& in) {
  const RlBatch& batch = *step.batch;
  return batch.slots ? batch.slots + static_cast<int64_t>(in.group) * batch.tokens : batch.positions;
}

RL_INLINE int32_t block_of(const Step& step, const RlInstr& in, int sequence, int64_t page) {
  const RlBatch& batch = *step.batch;
  return batch.block_table[(static_cast<int64_t>(in.group) * batch.sequences + sequence) * batch.table_stride + page];
}

RL_INLINE uint8_t* page_of(const Step& step, const RlInstr& in, int sequence, int64_t page, int kv_head) {
  const RlPool& pool = step.pools[in.group];
  const int32_t block = block_of(step, in, sequence, page);
  return pool.base + block * pool.block_stride + in.layer * pool.layer_stride + kv_head * pool.head_stride;
}

// [16 tokens]; only where the pool keeps mass.
RL_INLINE float* mass_of(const Step& step, const RlInstr& in, int sequence, int64_t page, int kv_head) {
  const RlPool& pool = step.pools[in.group];
  const int64_t layers = pool.block_stride / pool.layer_stride, heads = pool.layer_stride / pool.head_stride;
  const int64_t block = block_of(step, in, sequence, page);
  return pool.mass + ((block * layers + in.layer) * heads + kv_head) * RL_BLOCK_TOKENS;
}

// This thread's share of the step's k and v into their pages.
static inline void append(const Worker& worker, const Step& step, const RlInstr& in) {
  const int dim = in.head_dim;
  const int64_t width = static_cast<int64_t>(in.heads + 2 * in.kv_heads) * dim;
  const RlPool& pool = step.pools[in.group];
  const int32_t* slots = slots_of(step, in);
  const int bytes = row_bytes(pool.storage, dim);
  uint8_t row[MAX_ROW_BYTES];
  int64_t begin, end;
  share(step.batch->tokens, worker, begin, end);
  for (int64_t token = begin; token < end; token++) {
    const int slot = slots[token] % RL_BLOCK_TOKENS, page_number = slots[token] / RL_BLOCK_TOKENS;
    const int sequence = step.batch->sequence_of[token];
    const float* k = floats(step, in.in) + token * width + static_cast<int64_t>(in.heads) * dim;
    const float* v = k + static_cast<int64_t>(in.kv_heads) * dim;
    for (int h = 0; h < in.kv_heads; h++, k += dim, v += dim) {
      uint8_t* page = page_of(step, in, sequence, page_number, h);
      write_row(pool.storage, k, dim, row);
      put_key(page, slot, row, bytes);
      write_row(pool.storage, v, dim, page + pool.page_bytes + static_cast<int64_t>(slot) * bytes);
      if (pool.mass) mass_of(step, in, sequence, page_number, h)[slot] = 0.0f;
    }
  }
}

}  // namespace
}  // namespace ridgeline
