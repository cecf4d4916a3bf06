// sample: choose or score one token per logit row; semantics and order in ops/sample.py. One row by one thread.
// Idea: greedy is one vector scan. Otherwise tokens become 64-bit keys (value descending, id ascending); those too unlikely
// to be reached by a 24-bit uniform number are dropped, top-k is cut by a histogram of the leading bits, and only what is
// left is radix-sorted. Masses are summed in double. The logits themselves are never written: other rows need them.
#include "vec.h"

namespace ridgeline::RL_ISA {
namespace {

constexpr int TOP = 20;             // RlBatch.top_ids
constexpr float UNREACHABLE = 30.0f;  // e^-30 * 2^18 tokens < 2^-24: cannot be drawn

uint64_t mix(uint64_t x) {
  x += 0x9E3779B97F4A7C15ull;
  x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9ull;
  x = (x ^ x >> 27) * 0x94D049BB133111EBull;
  return x ^ x >> 31;
}

double uniform(uint64_t seed, int choice, int position) {
  const uint64_t bits = mix(mix(mix(seed) ^ static_cast<uint64_t>(choice)) ^ static_cast<uint64_t>(position)) >> 40;
  return static_cast<double>(bits) * 0x1p-24;
}

float exp_one(float x) { return exp(splat(x))[0]; }

// Ascending keys = descending values, then ascending ids.
uint64_t key_of(float value, uint32_t id) {
  value += 0.0f;  // -0 and 0 are equal
  uint32_t word;
  memcpy(&word, &value, 4);
  word = word & 0x80000000u ? word : ~word & 0x7fffffffu;
  return static_cast<uint64_t>(word) << 32 | id;
}
float value_of(uint64_t key) {
  uint32_t word = static_cast<uint32_t>(key >> 32);
  word = word & 0x80000000u ? word : ~word & 0x7fffffffu;
  float value;
  memcpy(&value, &word, 4);
  return value;
}
uint32_t id_of(uint64_t key) { return static_cast<uint32_t>(key); }

struct Room {  // sample_scratch_bytes
  float* logits;
  uint64_t *keys, *spare;
  uint32_t* counts;  // 8192
};

// Stable least-significant-digit radix sort on the value half; ids come in ascending already.
void sort(uint64_t*& keys, uint64_t*& spare, int64_t count, uint32_t* counts) {
  if (count <= 64) {
    for (int64_t i = 1; i < count; i++) {
      uint64_t key = keys[i];
      int64_t j = i;
      for (; j > 0 && keys[j - 1] > key; j--) keys[j] = keys[j - 1];
      keys[j] = key;
    }
    return;
  }
  for (int shift = 32; shift < 64; shift += 11) {
    memset(counts, 0, 2048 * sizeof *counts);
    for (int64_t i = 0; i < count; i++) counts[keys[i] >> shift & 2047]++;
    uint32_t start = 0;
    for (int d = 0; d < 2048; d++) {
      uint32_t here = counts[d];
      counts[d] = start;
      start += here;
    }
    for (int64_t i = 0; i < count; i++) spare[counts[keys[i] >> shift & 2047]++] = keys[i];
    uint64_t* other = keys;
    keys = spare;
    spare = other;
  }
}

// Drop keys that cannot be among the first `wanted`; keeps the order of the others. Returns how many stay.
int64_t cut(uint64_t* keys, int64_t count, int64_t wanted, uint32_t* counts) {
  if (count <= wanted || count <= 64) return count;
  memset(counts, 0, 8192 * sizeof *counts);
  for (int64_t i = 0; i < count; i++) counts[keys[i] >> 51]++;
  int64_t seen = 0;
  uint64_t last = 0;
  for (;; last++) {
    seen += counts[last];
    if (seen >= wanted) break;
  }
  int64_t kept = 0;
  for (int64_t i = 0; i < count; i++) {
    keys[kept] = keys[i];
    kept += keys[i] >> 51 <= last;
  }
  return kept;
}

float peak_of(const float* x, int64_t count) {
  F most = splat(-__builtin_inff());
  int64_t i = 0;
  for (; i + LANES <= count; i += LANES) most = max(load(x + i), most);
  float top = largest(most);
  for (; i < count; i++) top = x[i] > top ? x[i] : top;
  return top;
}

int first_of(const float* x, int64_t count, float value) {
  for (int64_t i = 0; i < count; i++)
    if (x[i] == value) return static_cast<int>(i);
  return 0;
}

// log of the sum of e^x.
float log_sum(const float* x, int64_t count, float top) {
  F sums[4] = {};
  double total = 0.0;
  int64_t i = 0;
  for (; i + 4 * LANES <= count; i += 4 * LANES)
#pragma GCC unroll 4
    for (int j = 0; j < 4; j++) sums[j] = sums[j] + exp(load(x + i + j * LANES) - splat(top));
  for (; i < count; i++) total += static_cast<double>(exp_one(x[i] - top));
  total += static_cast<double>(sum((sums[0] + sums[1]) + (sums[2] + sums[3])));
  return top + logf(static_cast<float>(total));
}

// What the mask does not allow becomes minus infinity. Whole words first: grammars allow few tokens, or nearly all.
void forbid(const uint32_t* mask, int64_t count, float* out) {
  const float never = -__builtin_inff();
  for (int64_t word = 0; word * 32 < count; word++) {
    const uint32_t bits = mask[word];
    if (bits == ~0u) continue;
    float* x = out + word * 32;
    const int64_t here = count - word * 32 < 32 ? count - word * 32 : 32;
    for (int64_t i = 0; i < here; i++) x[i] = bits >> i & 1 ? x[i] : never;
  }
}

const float* adjust(const RlBatch& batch, const RlSampling& sampling, const float* logits, int64_t count, float* out) {
  const bool has_changes = sampling.bias_begin < sampling.bias_end || sampling.history_begin < sampling.history_end;
  if (!has_changes && sampling.mask == 0) return logits;
  memcpy(out, logits, count * 4);
  for (int i = sampling.bias_begin; i < sampling.bias_end; i++) out[batch.bias_ids[i]] += batch.bias_values[i];
  for (int i = sampling.history_begin; i < sampling.history_end; i++) {
    float& x = out[batch.history_ids[i]];
    x = x > 0.0f ? x / sampling.repetition : x * sampling.repetition;
    const int times = batch.history_counts[i];
    if (times > 0) x -= sampling.presence + sampling.frequency * static_cast<float>(times);
  }
  if (sampling.mask > 0) forbid(batch.masks + (sampling.mask - 1) * ((count + 31) / 32), count, out);
  return out;
}

// law: NULL, or [count] zeros that take the probabilities the token is drawn with.
int draw(const RlSampling& sampling, const float* logits, int64_t count, Room& room, float* law) {
  const float top = peak_of(logits, count) / sampling.temperature;
  int64_t kept = 0;
  double rest = 0.0;  // mass of what is dropped as unreachable, for top_p
  for (int64_t i = 0; i < count; i++) {
    const float value = logits[i] / sampling.temperature;
    if (value - top >= -UNREACHABLE)
      room.keys[kept++] = key_of(value, static_cast<uint32_t>(i));
    else
      rest += static_cast<double>(exp_one(value - top));
  }
  if (kept == 0) return 0;  // only NaN
  if (sampling.top_k > 0 && sampling.top_k < kept) {
    kept = cut(room.keys, kept, sampling.top_k, room.counts);
    rest = 0.0;
  }
  sort(room.keys, room.spare, kept, room.counts);
  if (sampling.top_k > 0 && kept > sampling.top_k) kept = sampling.top_k;
  float* mass = reinterpret_cast<float*>(room.spare);
  double total = 0.0;
  for (int64_t i = 0; i < kept; i++) {
    mass[i] = exp_one(value_of(room.keys[i]) - value_of(room.keys[0]));
    total += static_cast<double>(mass[i]);
  }
  const float limit = sampling.top_p * static_cast<float>(total + rest);  // f32, as the meaning: 0.1 of 20 is 2
  double before = 0.0;
  int64_t last = 0;
  for (; last < kept && before < static_cast<double>(limit) && mass[last] >= sampling.min_p; last++) before += static_cast<double>(mass[last]);
  if (last == 0) {
    if (law) law[id_of(room.keys[0])] = 1.0f;
    return static_cast<int>(id_of(room.keys[0]));
  }
  if (law)
    for (int64_t i = 0; i < last; i++) law[id_of(room.keys[i])] = static_cast<float>(static_cast<double>(mass[i]) / before);
  const double goal = uniform(sampling.seed, sampling.choice, sampling.position) * before;
  double sum = 0.0;
  for (int64_t i = 0; i < last; i++) {
    sum += static_cast<double>(mass[i]);
    if (sum > goal) return static_cast<int>(id_of(room.keys[i]));
  }
  return static_cast<int>(id_of(room.keys[last - 1]));
}

void report(const RlBatch& batch, const RlSampling& sampling, int64_t row, const float* logits, int64_t count, int token,
            Room& room) {
  const float whole = log_sum(logits, count, peak_of(logits, count)), own = logits[token] - whole;
  int rank = 0;
  for (int64_t i = 0; i < count; i++) rank += logits[i] - whole > own;
  batch.logprob[row] = own;
  batch.rank[row] = rank;
  const int wanted = sampling.logprobs < TOP ? sampling.logprobs : TOP;
  if (wanted == 0) return;
  for (int64_t i = 0; i < count; i++) room.keys[i] = key_of(logits[i] - whole, static_cast<uint32_t>(i));
  const int64_t kept = cut(room.keys, count, wanted, room.counts);
  sort(room.keys, room.spare, kept, room.counts);
  for (int i = 0; i < wanted && i < kept; i++) {
    batch.top_ids[row * TOP + i] = static_cast<int32_t>(id_of(room.keys[i]));
    batch.top_logprobs[row * TOP + i] = value_of(room.keys[i]);
  }
}

}  // namespace

void sample(Worker& worker, const Step& step, const RlInstr& in) {
  const RlBatch& batch = *step.batch;
  const int64_t count = in.width_in;
  uint8_t* base = step.scratch + worker.thread * sample_scratch_bytes(count);
  uint64_t* keys = reinterpret_cast<uint64_t*>(base);
  uint64_t* spare = keys + count;
  Room room{reinterpret_cast<float*>(spare + count), keys, spare, nullptr};
  room.counts = reinterpret_cast<uint32_t*>(base + sample_scratch_bytes(count) - 65536);
  for (int64_t row = take(worker); row < batch.logit_rows; row = take(worker)) {
    const RlSampling& sampling = batch.sampling[row];
    const float* logits = floats(step, in.in) + row * count;
    int token = sampling.target;
    if (token < 0) {
      const float* adjusted = adjust(batch, sampling, logits, count, room.logits);
      float* law = sampling.law > 0 ? batch.laws + (sampling.law - 1) * count : nullptr;
      if (law) memset(law, 0, count * sizeof *law);
      if (sampling.temperature == 0.0f) {
        token = first_of(adjusted, count, peak_of(adjusted, count));
        if (law) law[token] = 1.0f;
      } else {
        token = draw(sampling, adjusted, count, room, law);
      }
    }
    batch.sampled[row] = token;
    if (sampling.logprobs >= 0) report(batch, sampling, row, logits, count, token, room);
  }
}

}  // namespace ridgeline::RL_ISA
