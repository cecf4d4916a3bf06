// Attention over closed blocks (HACK, E7): K and V as codes of two bits, multiplied as whole numbers and put right afterwards.
// Nothing stored is ever widened: codes go from pages into registers and there into dot products.
// A block is `block` tokens (32 or 64) at absolute places, its partitions `block` dimensions. It is written once its last
// token is there, from the bf16 pages where tokens lie until then (pool `recent`). A K page of 16 tokens:
//   words [dim / 16][16 tokens]: dimension 16 u + 4 i + j in bits 8 j + 2 i; bf16 (scale, low) of the page's share of the
//   channels [dim * 16 / block], over the block's tokens; sums of codes, bytes [partition][16 tokens].
// A V page: words [dim]: token 4 i + j in bits 8 j + 2 i; bf16 (scale, low) [partition][16 tokens], over the partition's
//   dimensions; sums of codes over the block's tokens, bytes, of the page's share of the channels.
// a . x = scale_a scale_x (a' . x') + scale_a low_x (sum of a') + low_a scale_x (sum of x') + n low_a low_x, where scale_x and
// low_x are taken into a first where they change along the sum: a = q * scale_K (weights * scale_V), rounded to 8 bits under a
// scale and low of its own for each row, block and partition; low_x meets the floats. Sums of codes are exact in any order;
// all else is a function of a row and of a block it sees (promise 1). The first `sinks` tokens have codes 0 and count for
// nothing: they stay in bf16.
#pragma once
#include "attend_rows.h"

namespace ridgeline {
namespace {

constexpr int MAX_PARTS = MAX_DIM / RL_BLOCK_TOKENS;
constexpr float CODES = 3.0f, ROUNDED = 255.0f;  // largest code kept, and of what it is multiplied by

// Four products of bytes a lane: a unsigned, x 0 .. 3.
RL_INLINE I add_bytes(I sum, const uint8_t* a, I x) {
  int four;
  memcpy(&four, a, 4);
#if RL_LEVEL == 2
  return (I)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)splat_int(four), (__m512i)x);
#elif RL_LEVEL == 1
  const __m256i pairs = _mm256_maddubs_epi16(_mm256_set1_epi32(four), (__m256i)x);
  return sum + (I)_mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
#else
#pragma GCC unroll 4
  for (int j = 0; j < 4; j++) sum += (x >> (8 * j) & 255) * splat_int(four >> (8 * j) & 255);
  return sum;
#endif
}

RL_INLINE void store_bytes(uint8_t* to, I x) {  // of 0 .. 255
#if RL_LEVEL == 2
  _mm_storeu_si128((__m128i*)to, _mm512_cvtepi32_epi8((__m512i)x));
#else
  for (int i = 0; i < LANES; i++) to[i] = static_cast<uint8_t>(x[i]);
#endif
}

struct Rounded {  // `count` floats as low + scale * code
  float scale, low;
};

RL_INLINE Rounded round_bytes(const float* x, int count, uint8_t* codes) {
  F most = load(x), least = most;
  for (int i = LANES; i < count; i += LANES) {
    most = max(most, load(x + i));
    least = min(least, load(x + i));
  }
  const float low = -largest(splat(0.0f) - least), scale = (largest(most) - low) / ROUNDED;
  const F inverse = splat(scale > 1e-30f ? 1.0f / scale : 0.0f);
  for (int i = 0; i < count; i += LANES) store_bytes(codes + i, round_int((load(x + i) - splat(low)) * inverse));
  return {scale, low};
}

// Bytes of a page before its scales, and before its sums.
RL_INLINE int codes_bytes(int dim) { return 4 * dim; }
RL_INLINE int sums_at(int dim, int block) { return 4 * dim + dim * UNIT_STRIDE / block; }
RL_INLINE int closed_page_bytes(int dim, int block) { return sums_at(dim, block) + dim * RL_BLOCK_TOKENS / block; }

template <int R>
void score_closed(Item& item, int first, const Pages& pages, int key, int dim) {
  const Seen seen = seen_by<R>(item, first, key);
  if (seen.nothing()) return;
  const int block = item.block, parts = dim / block, count = block / RL_BLOCK_TOKENS, channels = dim / count;
  alignas(64) uint8_t codes[R][MAX_DIM];
  alignas(64) float scales[MAX_DIM], lows[MAX_DIM], turned[MAX_DIM];
  Rounded rounded[R][MAX_PARTS];
  float shift[R];
  for (int page = 0; page < STEP_PAGES && page * RL_BLOCK_TOKENS <= seen.end; page += count) {
    for (int i = 0; i < count; i++)
      for (int d = 0; d < channels; d += LANES) {
        F scale, low;
        load_pairs(pages.k[page + i] + codes_bytes(dim) + d * 4, scale, low);
        store(scales + i * channels + d, scale);
        store(lows + i * channels + d, low);
      }
    for (int r = 0; r < R; r++) {
      const float* q = item.q.rows + (first + r) * item.stride;
      F sum_low = splat(0.0f);
      for (int d = 0; d < dim; d += LANES) {
        store(turned + d, load(q + d) * load(scales + d));
        sum_low = fma(load(q + d), load(lows + d), sum_low);
      }
      shift[r] = sum(sum_low);
      for (int p = 0; p < parts; p++) rounded[r][p] = round_bytes(turned + p * block, block, codes[r] + p * block);
    }
    for (int i = 0; i < count; i++)
      for (int lane = 0; lane < RL_BLOCK_TOKENS; lane += LANES) {
        const uint8_t* words = pages.k[page + i] + lane * 4;
        F score[R];
#pragma GCC unroll 6
        for (int r = 0; r < R; r++) score[r] = splat(shift[r]);
        for (int p = 0; p < parts; p++) {
          I sum[R] = {};
          for (int d = p * block; d < (p + 1) * block; d += RL_BLOCK_TOKENS) {
            const I word = load_int(words + d * 4);
#pragma GCC unroll 4
            for (int j = 0; j < 4; j++) {
              const I keys = word >> (2 * j) & 0x03030303;
#pragma GCC unroll 6
              for (int r = 0; r < R; r++) sum[r] = add_bytes(sum[r], codes[r] + d + 4 * j, keys);
            }
          }
          const uint8_t* sums = pages.k[page + i] + sums_at(dim, block) + p * RL_BLOCK_TOKENS + lane;
          const F total = to_float(load_bytes(sums));
#pragma GCC unroll 6
          for (int r = 0; r < R; r++) {
            score[r] = fma(to_float(sum[r]), splat(rounded[r][p].scale), score[r]);
            score[r] = fma(total, splat(rounded[r][p].low), score[r]);
          }
        }
#pragma GCC unroll 6
        for (int r = 0; r < R; r++) store(item.scores[first + r] + (page + i) * RL_BLOCK_TOKENS + lane, score[r]);
      }
  }
}

template <int R>
void weigh_closed(Item& item, int first, const Pages& pages, int key, int dim) {
  const Seen seen = seen_by<R>(item, first, key);
  if (seen.nothing()) return;
  const int block = item.block, count = block / RL_BLOCK_TOKENS, channels = dim / count;
  alignas(64) uint8_t codes[R][STEP_KEYS];
  alignas(64) float turned[STEP_KEYS];
  Rounded rounded[R];
  float shift[R];
  for (int page = 0; page < STEP_PAGES && page * RL_BLOCK_TOKENS <= seen.end; page += count)
    for (int p = 0; p < dim / block; p++) {
      F scale[VECTORS], low[VECTORS];
      for (int t = 0; t < block; t += LANES)
        load_pairs(pages.v[page + t / RL_BLOCK_TOKENS] + codes_bytes(dim) + p * UNIT_STRIDE + t % RL_BLOCK_TOKENS * 4,
                   scale[t / LANES], low[t / LANES]);
      for (int r = 0; r < R; r++) {
        const float* weights = item.scores[first + r] + page * RL_BLOCK_TOKENS;
        F sum_low = splat(0.0f);
        for (int t = 0; t < block; t += LANES) {
          store(turned + t, load(weights + t) * scale[t / LANES]);
          sum_low = fma(load(weights + t), low[t / LANES], sum_low);
        }
        shift[r] = sum(sum_low);
        rounded[r] = round_bytes(turned, block, codes[r]);
      }
      for (int d = p * block; d < (p + 1) * block; d += LANES) {
        I sum[R] = {};
        for (int i = 0; i < count; i++) {
          const I word = load_int(pages.v[page + i] + d * 4);
#pragma GCC unroll 4
          for (int j = 0; j < 4; j++) {
            const I values = word >> (2 * j) & 0x03030303;
#pragma GCC unroll 6
            for (int r = 0; r < R; r++) sum[r] = add_bytes(sum[r], codes[r] + i * RL_BLOCK_TOKENS + 4 * j, values);
          }
        }
        const F total = to_float(load_bytes(pages.v[page + d / channels] + sums_at(dim, block) + d % channels));
#pragma GCC unroll 6
        for (int r = 0; r < R; r++) {
          float* values = item.values(first + r) + d;
          const F x = fma(to_float(sum[r]), splat(rounded[r].scale), load(values) + splat(shift[r]));
          store(values, fma(total, splat(rounded[r].low), x));
        }
      }
    }
}

// ---- closing

// Scale and low of numbers between two: nothing is cut off (int4 does the same). Returns what codes are found with.
RL_INLINE F keep_scale(float least, float most, uint8_t* at, F& low) {
  uint16_t pair[2] = {0, bf16_toward(least, false)};
  pair[0] = bf16_toward((most - bf16_to_float(pair[1])) / CODES, true);
  memcpy(at, pair, 4);
  const float scale = bf16_to_float(pair[0]);
  low = splat(bf16_to_float(pair[1]));
  return splat(scale > 1e-30f ? 1.0f / scale : 0.0f);
}

RL_INLINE I code_of(F x, F low, F inverse) {
  return round_int(min(max((x - low) * inverse, splat(0.0f)), splat(CODES)));
}

// Of `block` tokens in bf16 K pages: codes, scales and sums into the closed ones. Tokens below `sinks` stay out.
static inline void close_keys(const uint8_t* const* from, uint8_t* const* to, int block, int dim, int sinks) {
  const int count = block / RL_BLOCK_TOKENS, channels = dim / count;
  for (int i = 0; i < count; i++) memset(to[i], 0, closed_page_bytes(dim, block));
  for (int d = 0; d < dim; d++) {  // lanes are tokens
    F x[STEP_KEYS / LANES], least = splat(-NOTHING), most = splat(NOTHING), low;
    for (int t = 0; t < block; t += LANES) {
      F pair[2];
      load_pairs(from[t / RL_BLOCK_TOKENS] + d / 2 * UNIT_STRIDE + t % RL_BLOCK_TOKENS * 4, pair[0], pair[1]);
      x[t / LANES] = pair[d % 2];
      least = min(keep_range(pair[d % 2], numbers() + splat_int(t), sinks, block, splat(-NOTHING)), least);
      most = max(keep_range(pair[d % 2], numbers() + splat_int(t), sinks, block, splat(NOTHING)), most);
    }
    const F inverse = keep_scale(-largest(splat(0.0f) - least), largest(most),
                                 to[d / channels] + codes_bytes(dim) + d % channels * 4, low);
    for (int t = 0; t < block; t += LANES) {
      const F seen = keep_range(splat(1.0f), numbers() + splat_int(t), sinks, block, splat(0.0f));
      const I code = round_int(to_float(code_of(x[t / LANES], low, inverse)) * seen);
      uint8_t* page = to[t / RL_BLOCK_TOKENS];
      uint8_t* word = page + d / RL_BLOCK_TOKENS * UNIT_STRIDE + t % RL_BLOCK_TOKENS * 4;
      const I with = load_int(word) | code << (d % 4 * 8 + d % RL_BLOCK_TOKENS / 4 * 2);
      store(reinterpret_cast<float*>(word), bits(with));
      uint8_t* sums = page + sums_at(dim, block) + d / block * RL_BLOCK_TOKENS + t % RL_BLOCK_TOKENS;
      store_bytes(sums, load_bytes(sums) + code);
    }
  }
}

static inline void close_values(const uint8_t* const* from, uint8_t* const* to, int block, int dim, int sinks) {
  const int count = block / RL_BLOCK_TOKENS, channels = dim / count;
  for (int i = 0; i < count; i++) memset(to[i], 0, closed_page_bytes(dim, block));
  for (int t = sinks; t < block; t++) {  // lanes are dimensions
    const int slot = t % RL_BLOCK_TOKENS, shift = slot % 4 * 8 + slot / 4 * 2;
    const uint16_t* row = reinterpret_cast<const uint16_t*>(from[t / RL_BLOCK_TOKENS]) + slot * dim;
    uint8_t* page = to[t / RL_BLOCK_TOKENS];
    for (int p = 0; p < dim / block; p++) {
      F least = load_bf16(row + p * block), most = least, low;
      for (int d = p * block + LANES; d < (p + 1) * block; d += LANES) {
        least = min(load_bf16(row + d), least);
        most = max(load_bf16(row + d), most);
      }
      const F inverse = keep_scale(-largest(splat(0.0f) - least), largest(most),
                                   page + codes_bytes(dim) + p * UNIT_STRIDE + slot * 4, low);
      for (int d = p * block; d < (p + 1) * block; d += LANES) {
        const I code = code_of(load_bf16(row + d), low, inverse);
        store(reinterpret_cast<float*>(page + d * 4), bits(load_int(page + d * 4) | code << shift));
        uint8_t* sums = to[d / channels] + sums_at(dim, block) + d % channels;
        store_bytes(sums, load_bytes(sums) + code);
      }
    }
  }
}

// This thread's share of the blocks whose last token this step has brought, one item a (block, kv head). in: the attend line;
// recent: the same in the group of the bf16 pages.
static inline void close_blocks(const Worker& worker, const Step& step, const RlInstr& in, const RlInstr& recent) {
  const RlBatch& batch = *step.batch;
  const RlPool &pool = step.pools[in.group], &open = step.pools[recent.group];
  const int block = block_of_storage(pool.storage), sinks = sinks_of_storage(pool.storage), count = block / RL_BLOCK_TOKENS;
  int64_t item = 0;
  for (int s = 0; s < batch.sequences; s++) {
    const int begin = batch.first_token[s], end = batch.first_token[s + 1];
    if (begin == end) continue;
    const int before = batch.positions[begin] / block, after = (batch.positions[end - 1] + 1) / block;
    for (int b = before; b < after; b++)
      for (int h = 0; h < in.kv_heads; h++, item++) {
        if (item % worker.threads != worker.thread) continue;
        const uint8_t *keys[STEP_PAGES], *values[STEP_PAGES];
        uint8_t *to_keys[STEP_PAGES], *to_values[STEP_PAGES];
        for (int i = 0; i < count; i++) {
          keys[i] = page_of(step, recent, s, b * count + i, h);
          values[i] = keys[i] + open.page_bytes;
          to_keys[i] = page_of(step, in, s, b * count + i, h);
          to_values[i] = to_keys[i] + pool.page_bytes;
        }
        const int left_out = b == 0 ? sinks : 0;
        close_keys(keys, to_keys, block, in.head_dim, left_out);
        close_values(values, to_values, block, in.head_dim, left_out);
      }
  }
}

}  // namespace
}  // namespace ridgeline
