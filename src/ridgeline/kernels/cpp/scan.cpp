// scan: the selective recurrence of Mamba-2, h = h exp(rate decay) + B (rate x), y = C h + skip x, one decay a head.
// Idea: a sequence and a head is one piece of work. Its state [states][head_dim] stays in the cache while the tokens pass
// in order, so chunks of any length give the same bits. Lanes are dimensions of the head: every lane sums over the states
// upwards by itself, and nothing is reduced across lanes.
#include "vec.h"

namespace ridgeline::RL_ISA {
namespace {

constexpr int WIDE = 4;  // vectors of dimensions that go through the states together

// log(1 + e^x), as PyTorch has it: x itself above 20, where the difference is below a rounding.
RL_INLINE float softplus(float x) { return x > 20.0f ? x : log1pf(expf(x)); }

struct Token {
  const float *x, *b, *c;  // [head_dim], [states], [states]
  float rate, keep, skip;
};

// One token through V vectors of dimensions (or through n < LANES of one) of a state with rows of `dim`.
template <int V>
RL_INLINE void pass(const Token& token, float* state, float* out, int64_t states, int64_t dim, int n, bool is_first) {
  F fresh[V], sum[V];
  const F keep = splat(token.keep);
#pragma GCC unroll 4
  for (int v = 0; v < V; v++) {
    F x = n < LANES ? load_part(token.x, n) : load(token.x + v * LANES);
    fresh[v] = splat(token.rate) * x;
    sum[v] = splat(0.0f);
  }
  for (int64_t s = 0; s < states; s++) {
    const F b = splat(token.b[s]), c = splat(token.c[s]);
    float* row = state + s * dim;
#pragma GCC unroll 4
    for (int v = 0; v < V; v++) {
      F kept = splat(0.0f);
      if (!is_first) kept = (n < LANES ? load_part(row, n) : load(row + v * LANES)) * keep;
      kept = fma(b, fresh[v], kept);
      sum[v] = fma(c, kept, sum[v]);
      if (n < LANES)
        store_part(row, kept, n);
      else
        store(row + v * LANES, kept);
    }
  }
#pragma GCC unroll 4
  for (int v = 0; v < V; v++) {
    F x = n < LANES ? load_part(token.x, n) : load(token.x + v * LANES);
    F y = fma(splat(token.skip), x, sum[v]);
    if (n < LANES)
      store_part(out, y, n);
    else
      store(out + v * LANES, y);
  }
}

}  // namespace

void scan(Worker& worker, const Step& step, const RlInstr& in) {
  const RlBatch& batch = *step.batch;
  const int64_t heads = in.heads, dim = in.head_dim, states = in.states, inner = heads * dim;
  const int64_t channels = in.width_in, wide = inner + channels + heads;
  const float* decay = static_cast<const float*>(in.weight[0].data);
  const float* bias = static_cast<const float*>(in.weight[1].data);
  const float* skip = static_cast<const float*>(in.weight[2].data);
  const int64_t offset = round_up((in.taps - 1) * channels * 4, RL_STATE_ALIGNMENT) / 4;
  for (int64_t item = take(worker); item < batch.sequences * heads; item = take(worker)) {
    const int64_t s = item / heads, h = item % heads, group = h / (heads / in.kv_heads);
    float* state = state_of(step, in, s) + offset + h * states * dim;
    for (int64_t t = batch.first_token[s]; t < batch.first_token[s + 1]; t++) {
      const float* row = floats(step, in.in) + t * channels;
      const float rate = softplus(floats(step, in.in2)[t * wide + inner + channels + h] + bias[h]);
      Token token{row + h * dim, row + inner + group * states, row + inner + (in.kv_heads + group) * states,
                  rate, expf(rate * decay[h]), skip[h]};
      float* out = floats(step, in.out) + t * inner + h * dim;
      const bool is_first = batch.positions[t] == 0;
      int64_t d = 0;
      for (; d + WIDE * LANES <= dim; d += WIDE * LANES, token.x += WIDE * LANES)
        pass<WIDE>(token, state + d, out + d, states, dim, LANES, is_first);
      for (; d < dim; d += LANES, token.x += LANES)
        pass<1>(token, state + d, out + d, states, dim, dim - d < LANES ? static_cast<int>(dim - d) : LANES, is_first);
    }
  }
}

}  // namespace ridgeline::RL_ISA
