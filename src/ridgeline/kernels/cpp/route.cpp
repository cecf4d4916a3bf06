// route: the experts of each token, one row by one thread; then one thread numbers all rows sent, sorted by expert.
// Nothing of a row but its places depends on other rows (promise 1); places only say where a row is computed.
#include "vec.h"

namespace ridgeline::RL_ISA {
namespace {

struct Row {
  float score[RL_MAX_EXPERTS + LANES], wanted[RL_MAX_EXPERTS + LANES];
};

// Softmax, or a sigmoid of each; a partial vector is filled so that lanes past the end add nothing.
void scores(const float* logits, int experts, bool is_sigmoid, Row& row) {
  const F least = splat(-INFINITY);
  F peak = least;
  for (int e = 0; e < experts; e += LANES) {
    F x = experts - e >= LANES ? load(logits + e) : load_part(logits + e, experts - e);
    x = keep_range(x, numbers() + splat_int(e), 0, experts - 1, least);
    store(row.wanted + e, x);
    peak = max(x, peak);
  }
  const F top = splat(largest(peak));
  F total = splat(0.0f);
  for (int e = 0; e < experts; e += LANES) {
    const F x = load(row.wanted + e);
    const F y = is_sigmoid ? splat(1.0f) / (splat(1.0f) + exp(splat(0.0f) - x)) : exp(x - top);
    store(row.score + e, y);
    total = total + y;
  }
  if (is_sigmoid) return;
  const F inverse = splat(1.0f / sum(total));
  for (int e = 0; e < experts; e += LANES) store(row.score + e, load(row.score + e) * inverse);
}

// The largest, ties to the smaller place; a place even when everything is NaN.
int best(const float* wanted, const bool* taken, int count) {
  int found = -1;
  for (int e = 0; e < count; e++)
    if (!taken[e] && (found < 0 || wanted[e] > wanted[found])) found = e;
  return found;
}

// Takes the experts of all groups but those whose two best sum highest.
void leave_groups(const RlInstr& in, const float* wanted, bool* taken) {
  const int size = in.experts / in.groups;
  float sums[RL_MAX_EXPERTS];
  bool kept[RL_MAX_EXPERTS] = {};
  for (int g = 0; g < in.groups; g++) {
    const float* x = wanted + g * size;
    float first = -INFINITY, second = -INFINITY;
    for (int e = 0; e < size; e++) {
      if (x[e] > first) {
        second = first;
        first = x[e];
      } else if (x[e] > second) {
        second = x[e];
      }
    }
    sums[g] = size > 1 ? first + second : first;
  }
  for (int i = 0; i < in.groups_kept; i++) kept[best(sums, kept, in.groups)] = true;
  for (int e = 0; e < in.experts; e++) taken[e] = !kept[e / size];
}

void choose(const RlInstr& in, const float* logits, float* out, Row& row) {
  const float* bias = static_cast<const float*>(in.weight[0].data);
  const bool is_sigmoid = in.flags & RL_ROUTE_SIGMOID;
  scores(logits, in.experts, is_sigmoid, row);
  if (is_sigmoid || bias)  // else by the logits themselves: finer than rounded scores
    for (int e = 0; e < in.experts; e++) row.wanted[e] = row.score[e] + (bias ? bias[e] : 0.0f);
  bool taken[RL_MAX_EXPERTS] = {};
  if (in.groups > 1) leave_groups(in, row.wanted, taken);
  float total = 1e-20f;  // sigmoids may all be 0
  for (int j = 0; j < in.chosen; j++) {
    const int e = best(row.wanted, taken, in.experts);
    taken[e] = true;
    out[j] = static_cast<float>(e);
    out[in.chosen + j] = row.score[e];
    total += row.score[e];
  }
  const bool renormalise = in.flags & RL_ROUTE_RENORMALISE;
  for (int j = 0; j < in.chosen; j++)
    out[in.chosen + j] = (renormalise ? out[in.chosen + j] / total : out[in.chosen + j]) * in.scale;
}

// Counting sort by expert, stable: the place of each (token, choice).
void number(const Step& step, const RlInstr& in) {
  int32_t next[RL_MAX_EXPERTS + 1] = {};
  float* rows = floats(step, in.out);
  const int64_t width = 3 * in.chosen;
  for (int64_t token = 0; token < step.batch->tokens; token++)
    for (int j = 0; j < in.chosen; j++) next[static_cast<int>(rows[token * width + j]) + 1]++;
  int distinct = 0;
  for (int e = 0; e < in.experts; e++) {
    distinct += next[e + 1] > 0;
    next[e + 1] += next[e];
  }
  for (int64_t token = 0; token < step.batch->tokens; token++)
    for (int j = 0; j < in.chosen; j++) {
      float* row = rows + token * width;
      row[2 * in.chosen + j] = static_cast<float>(next[static_cast<int>(row[j])]++);
    }
  if (step.batch->line_experts) step.batch->line_experts[in.line] = distinct;
}

}  // namespace

void route(Worker& worker, const Step& step, const RlInstr& in) {
  Row row;
  int64_t begin, end;
  share(step.batch->tokens, worker, begin, end);
  for (int64_t token = begin; token < end; token++)
    choose(in, floats(step, in.in) + token * in.width_in, floats(step, in.out) + token * in.width_out, row);
  barrier(worker);
  if (worker.thread == 0) number(step, in);
}

}  // namespace ridgeline::RL_ISA
