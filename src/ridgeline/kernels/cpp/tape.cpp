// The tape: checks a step, then every thread of the team walks the instructions with barriers between them. Also the
// choice of the instruction set and the measured ceilings. Everything that can be wrong is found before the first thread
// starts, so that kernels check nothing.
// size: every operator's check stands here, none in the kernels
#include <stddef.h>

#include <atomic>

#include "kernels.h"

namespace ridgeline {
namespace {

// ---- instruction sets

int available() {
  int mask = 1 << RL_PLAIN;
#if RL_X86
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c")) {
    mask |= 1 << RL_AVX2;
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vnni")) {
      mask |= 1 << RL_AVX512;
      if (__builtin_cpu_supports("avx512bf16")) mask |= 1 << RL_AVX512_BF16;
    }
  }
#endif
  return mask;
}

std::atomic<int> chosen{-1};  // -1: the best available

int isa() {
  int now = chosen.load(std::memory_order_relaxed);
  if (now >= 0) return now;
  const int mask = available();
  for (now = RL_AVX512_BF16; !(mask >> now & 1); now--) {
  }
  chosen.store(now, std::memory_order_relaxed);
  return now;
}

const Kernels& kernels() {
#if RL_X86
  if (isa() >= RL_AVX512) return kernels_avx512;  // the bf16 set has no bodies of its own yet: same bits
  if (isa() == RL_AVX2) return kernels_avx2;
#endif
  return kernels_plain;
}

// ---- checks; the numbers are named in native.py

enum Fault {
  BAD_ARGUMENT = 1, BAD_OPERATION, BAD_FORMAT, BAD_WEIGHT, BAD_WIDTH, BAD_BUFFER, BAD_BATCH, BAD_HEADS, BAD_POOL,
  BAD_SCRATCH
};

bool integer(const RlWeight& weight) { return columns_in_block(weight.format) > 1; }

Fault check_weight(const RlWeight& weight, int columns) {
  if (weight.format < 0 || kind_of(weight.format) >= RL_FORMAT_END) return BAD_FORMAT;
  if (!weight.data || reinterpret_cast<uintptr_t>(weight.data) % 64) return BAD_WEIGHT;
  if (weight.columns != columns || weight.bytes != rl_packed_bytes(weight.format, weight.rows, columns)) return BAD_WEIGHT;
  return Fault(0);
}

Fault check_linear(const RlInstr& in) {
  if (in.parts < 1 || in.parts > 3) return BAD_OPERATION;
  int64_t width = 0;
  for (int p = 0; p < in.parts; p++) {
    if (Fault fault = check_weight(in.weight[p], in.width_in)) return fault;
    width += in.weight[p].rows;
    if ((integer(in.weight[p]) ? in.in_quant : in.in) < 0) return BAD_BUFFER;
  }
  return width == in.width_out ? Fault(0) : BAD_WIDTH;
}

bool routes(const RlInstr& in) {
  return in.experts >= 1 && in.experts <= RL_MAX_EXPERTS && in.chosen >= 1 && in.chosen <= in.experts;
}

Fault check_route(const RlInstr& in) {
  if (!routes(in) || in.width_in != in.experts || in.width_out != 3 * in.chosen || in.per_logit_row) return BAD_WIDTH;
  if (in.groups < 1 || in.experts % in.groups || in.groups_kept < 1 || in.groups_kept > in.groups) return BAD_OPERATION;
  if (in.groups_kept * (in.experts / in.groups) < in.chosen) return BAD_OPERATION;
  return in.weight[0].data && in.weight[0].columns != in.experts ? BAD_WEIGHT : Fault(0);
}

Fault check_experts(const RlInstr& in) {
  if (in.width_in % in.chosen || in.width_out != in.width_in) return BAD_WIDTH;
  if (in.in2 < 0 || in.work < 0 || in.work % 64) return BAD_BUFFER;
  if (in.activation != RL_SILU && in.activation != RL_GELU_TANH) return BAD_OPERATION;
  const int32_t width = in.width_in / in.chosen, hidden = in.weight[0].rows;
  for (int p = 0; p < 3; p++) {
    RlWeight one = in.weight[p];
    if (one.bytes % in.experts) return BAD_WEIGHT;
    one.bytes /= in.experts;
    if (Fault fault = check_weight(one, p < 2 ? width : hidden)) return fault;
    if (one.rows != (p < 2 ? hidden : width)) return BAD_WEIGHT;
    if (p < 2 && integer(one) && in.in_quant < 0) return BAD_BUFFER;
  }
  return Fault(0);
}

// dispatch and combine
Fault check_moved(const RlInstr& in) {
  if (in.in2 < 0 || in.per_logit_row) return BAD_BUFFER;
  const bool is_dispatch = in.op == RL_DISPATCH;
  const int64_t narrow = is_dispatch ? in.width_in : in.width_out, wide = is_dispatch ? in.width_out : in.width_in;
  if (wide != narrow * in.chosen) return BAD_WIDTH;
  return is_dispatch && in.out_quant >= 0 && narrow % RL_GROUP ? BAD_WIDTH : Fault(0);
}

Fault check_batch_for(const RlInstr& in, const RlBatch& batch) {
  const int64_t rows = in.width_in;
  if (in.op == RL_EMBED)
    for (int t = 0; t < batch.tokens; t++)
      if (batch.token_ids[t] < 0 || batch.token_ids[t] >= in.weight[0].rows) return BAD_BATCH;
  if (in.op == RL_GATHER)
    for (int r = 0; r < batch.logit_rows; r++)
      if (batch.logit_token[r] < 0 || batch.logit_token[r] >= batch.tokens) return BAD_BATCH;
  if (in.op != RL_SAMPLE) return Fault(0);
  for (int r = 0; r < batch.logit_rows; r++) {
    const RlSampling& s = batch.sampling[r];
    if (s.target >= rows || s.logprobs > 20 || !(s.temperature >= 0.0f) || s.law < 0 || (s.law > 0 && !batch.laws)) return BAD_BATCH;
    if (s.logprobs >= 0 && (!batch.logprob || !batch.rank || !batch.top_ids || !batch.top_logprobs)) return BAD_BATCH;
    for (int i = s.history_begin; i < s.history_end; i++)
      if (batch.history_ids[i] < 0 || batch.history_ids[i] >= rows) return BAD_BATCH;
    for (int i = s.bias_begin; i < s.bias_end; i++)
      if (batch.bias_ids[i] < 0 || batch.bias_ids[i] >= rows) return BAD_BATCH;
  }
  return Fault(0);
}

// Slots, sequences, trees and every block that attention will read or write. Blocks that no token of the batch sees may
// be -1: nobody looks at them.
Fault check_pages(const RlBatch& batch, const RlPool& pool, const RlInstr& in) {
  if (!batch.positions || !batch.sequence_of || !batch.first_token || !batch.block_table) return BAD_BATCH;
  if (batch.first_token[0] != 0 || batch.first_token[batch.sequences] != batch.tokens) return BAD_BATCH;
  const int32_t* slots = batch.slots ? batch.slots + static_cast<int64_t>(in.group) * batch.tokens : batch.positions;
  for (int s = 0; s < batch.sequences; s++) {
    const int begin = batch.first_token[s], end = batch.first_token[s + 1];
    if (end < begin) return BAD_BATCH;
    if (end == begin) continue;
    const int64_t base = slots[begin], high = base + (end - begin) - 1;
    if (base < 0 || high / RL_BLOCK_TOKENS >= batch.table_stride) return BAD_BATCH;
    for (int t = begin; t < end; t++) {
      const int place = t - begin;
      int depth = place;
      if (batch.tree && batch.tree[t] && end - begin <= 64) {
        if (pool.mass || batch.tree[t] >> place != 1) return BAD_BATCH;  // itself, nothing behind it
        depth = __builtin_popcountll(batch.tree[t]) - 1;
      }
      if (batch.sequence_of[t] != s || slots[t] != base + place) return BAD_BATCH;
      if (batch.positions[t] < 0 || batch.positions[t] != batch.positions[begin] + depth) return BAD_BATCH;
    }
    const int64_t low = in.window > 0 && base >= in.window ? base - in.window + 1 : 0;
    const int32_t* blocks = batch.block_table + (static_cast<int64_t>(in.group) * batch.sequences + s) * batch.table_stride;
    for (int64_t page = 0; page <= high / RL_BLOCK_TOKENS; page++) {
      if (page < low / RL_BLOCK_TOKENS && page * RL_BLOCK_TOKENS >= in.sinks) {
        page = low / RL_BLOCK_TOKENS - 1;
        continue;
      }
      if (blocks[page] < 0 || blocks[page] >= pool.blocks) return BAD_BATCH;
    }
  }
  return Fault(0);
}

// Of a pool that closes blocks: those that are closed with this step there; in the pool of recent tokens, the sinks' and
// those since the last closed block before it.
Fault check_closed(const RlBatch& batch, const RlPool* pools, const RlInstr& in) {
  const RlPool &pool = pools[in.group], &recent = pools[in.recent];
  RlInstr near = in;
  near.group = in.recent;
  near.window = 1;  // its own loop ends at the token's own block; the rest is asked for here
  near.sinks = sinks_of_storage(pool.storage);
  if (batch.slots || batch.tree || in.window) return BAD_BATCH;
  if (Fault fault = check_pages(batch, recent, near)) return fault;
  const int block = block_of_storage(pool.storage);
  for (int s = 0; s < batch.sequences; s++) {
    const int begin = batch.first_token[s], end = batch.first_token[s + 1];
    if (begin == end) continue;
    const int64_t row = (static_cast<int64_t>(in.group) * batch.sequences + s) * batch.table_stride;
    const int64_t near_row = (static_cast<int64_t>(in.recent) * batch.sequences + s) * batch.table_stride;
    const int64_t closed = (batch.positions[end - 1] + 1) / block * (block / RL_BLOCK_TOKENS);
    for (int64_t page = 0; page < closed; page++)
      if (batch.block_table[row + page] < 0 || batch.block_table[row + page] >= pool.blocks) return BAD_BATCH;
    for (int64_t page = batch.positions[begin] / block * (block / RL_BLOCK_TOKENS);
         page <= batch.positions[begin] / RL_BLOCK_TOKENS; page++)
      if (batch.block_table[near_row + page] < 0 || batch.block_table[near_row + page] >= recent.blocks) return BAD_BATCH;
  }
  return Fault(0);
}

// The group's pool holds pages of this instruction's shape, and its layer.
Fault check_pool(const RlInstr& in, const RlPool& pool) {
  if (!pool.base || pool.blocks < 1) return BAD_POOL;
  const int block = is_closed(pool.storage) ? block_of_storage(pool.storage) : 0;
  if (is_closed(pool.storage) && ((block != 32 && block != 64) || in.head_dim % block || pool.mass ||
                                  sinks_of_storage(pool.storage) >= block))
    return BAD_POOL;
  int64_t row = 0;  // bytes of a kept vector (pages.h)
  switch (pool.storage & 255) {
    case RL_KV_F32: row = in.head_dim * 4; break;
    case RL_KV_BF16: row = in.head_dim * 2; break;
    case RL_KV_INT8: row = in.head_dim + 4; break;
    case RL_KV_INT4: row = in.head_dim / 2 + 4; break;
    case RL_KV_CLOSED: row = in.head_dim / 4 + 5 * in.head_dim / block; break;
    default: return BAD_POOL;
  }
  if (pool.page_bytes < row * RL_BLOCK_TOKENS || pool.head_stride < pool.page_bytes + row * RL_BLOCK_TOKENS)
    return BAD_POOL;
  if (pool.mass && in.sinks > 0) return BAD_POOL;
  const int64_t last = in.layer * pool.layer_stride + in.kv_heads * pool.head_stride;
  return last <= pool.block_stride ? Fault(0) : BAD_POOL;
}

// Widths, weights and, for operators that keep state, its slots; slots_checked: the batch's were found good.
Fault check_recurrent(const RlInstr& in, const RlBatch& batch, bool slots_checked) {
  if (in.heads < 1 || in.kv_heads < 1 || in.heads % in.kv_heads || in.head_dim < 1 || in.states < 1) return BAD_HEADS;
  if (in.taps < 1 || in.taps > 16 || in.layer < 0) return BAD_HEADS;
  const int64_t inner = static_cast<int64_t>(in.heads) * in.head_dim, channels = inner + 2LL * in.kv_heads * in.states;
  if (in.op == RL_GATED_NORM) {
    if (in.in2 < 0) return BAD_BUFFER;
    if (in.width_in != inner || in.width_out != inner) return BAD_WIDTH;
    return in.weight[0].data && in.weight[0].columns == inner ? Fault(0) : BAD_WEIGHT;
  }
  if (in.out_quant >= 0) return BAD_BUFFER;  // nothing integer reads these
  if (in.op == RL_CONV) {
    if (in.width_in != inner + channels + in.heads || in.width_out != channels) return BAD_WIDTH;
    if (!in.weight[0].data || in.weight[0].rows != in.taps || in.weight[0].columns != channels) return BAD_WEIGHT;
  } else {
    if (in.in2 < 0) return BAD_BUFFER;
    if (in.width_in != channels || in.width_out != inner) return BAD_WIDTH;
    for (int p = 0; p < 3; p++)
      if (!in.weight[p].data || in.weight[p].columns != in.heads) return BAD_WEIGHT;
  }
  const int64_t first = round_up((in.taps - 1) * channels * 4, RL_STATE_ALIGNMENT), second = inner * in.states * 4;
  if (!batch.state || batch.state_slots < 1 || batch.state_layer_stride < first + second) return BAD_POOL;
  if ((in.layer + 1) * batch.state_layer_stride > batch.slot_stride) return BAD_POOL;
  if (slots_checked) return Fault(0);
  if (!batch.positions || !batch.first_token || !batch.state_slot) return BAD_BATCH;
  if (batch.first_token[0] != 0 || batch.first_token[batch.sequences] != batch.tokens) return BAD_BATCH;
  for (int s = 0; s < batch.sequences; s++) {
    const int32_t slot = batch.state_slot[s];
    if (batch.first_token[s + 1] < batch.first_token[s] || slot < 0 || slot >= batch.state_slots) return BAD_BATCH;
    for (int other = 0; other < s; other++)
      if (batch.state_slot[other] == slot) return BAD_BATCH;  // two writers of one state
  }
  return Fault(0);
}

// pages_checked: the batch's pages were found good for an earlier layer of this group.
Fault check(const RlInstr& in, const RlBatch& batch, const RlPool* pools, int pool_count, int64_t scratch_bytes,
            int threads, bool pages_checked) {
  if (in.op < RL_EMBED || in.op >= RL_OP_END) return BAD_OPERATION;
  if (in.width_out < 1 || (in.out < 0 && in.op != RL_SAMPLE)) return BAD_BUFFER;
  if (in.out > 0 && in.out % 64) return BAD_BUFFER;
  if ((in.in > 0 && in.in % 64) || (in.in2 > 0 && in.in2 % 64) || (in.in_quant > 0 && in.in_quant % 64)) return BAD_BUFFER;
  if (in.out_quant >= 0 && (in.width_out % RL_GROUP || in.out_quant % 64)) return BAD_WIDTH;
  if (in.op != RL_EMBED && in.op != RL_LINEAR && in.in < 0) return BAD_BUFFER;
  const int64_t qkv = (static_cast<int64_t>(in.heads) + 2 * in.kv_heads) * in.head_dim;
  switch (in.op) {
    case RL_EMBED:
      if (Fault fault = check_weight(in.weight[0], in.width_out)) return fault;
      return batch.token_ids ? check_batch_for(in, batch) : BAD_BATCH;
    case RL_NORM: return in.weight[0].data && in.weight[0].columns == in.width_out ? Fault(0) : BAD_WEIGHT;
    case RL_LINEAR: return check_linear(in);
    case RL_HEAD_NORM:
      if (in.heads < 1 || in.kv_heads < 0 || in.head_dim < 1 || in.width_in != qkv || in.width_out != qkv) return BAD_HEADS;
      for (int p = 0; p < 2; p++)
        if (!in.weight[p].data || in.weight[p].columns != in.head_dim) return BAD_WEIGHT;
      return Fault(0);
    case RL_ROPE:
      if (!in.rope_cos || !in.rope_sin || !batch.positions) return BAD_ARGUMENT;
      if (in.rotary_dim < 2 || in.rotary_dim % 2 || in.rotary_dim > in.head_dim || in.width_out != qkv) return BAD_HEADS;
      return Fault(0);
    case RL_ATTEND:
      if (in.kv_heads < 1 || in.heads % in.kv_heads || in.head_dim % 8 || in.head_dim < 8 || in.head_dim > 256)
        return BAD_HEADS;
      if (in.width_in != qkv || in.width_out != in.heads * in.head_dim || in.layer < 0 || in.window < 0 || in.sinks < 0)
        return BAD_WIDTH;
      if (in.sinks > 0 && in.rotary_dim != 0 &&
          (!in.rope_cos || !in.rope_sin || in.rotary_dim < 2 || in.rotary_dim % 2 || in.rotary_dim > in.head_dim))
        return BAD_HEADS;
      if (!pools || in.group < 0 || in.group >= pool_count) return BAD_POOL;
      if (Fault fault = check_pool(in, pools[in.group])) return fault;
      if (is_closed(pools[in.group].storage)) {
        if (in.recent < 0 || in.recent >= pool_count || pools[in.recent].storage != RL_KV_BF16) return BAD_POOL;
        if (Fault fault = check_pool(in, pools[in.recent])) return fault;
        return pages_checked ? Fault(0) : check_closed(batch, pools, in);
      }
      if (pools[in.group].mass && mass_scratch_bytes(batch.tokens, in.heads) > scratch_bytes) return BAD_SCRATCH;
      return pages_checked ? Fault(0) : check_pages(batch, pools[in.group], in);
    case RL_ACTIVATION:
      if (in.activation != RL_SILU && in.activation != RL_GELU_TANH) return BAD_OPERATION;
      return in.width_in == 2 * in.width_out ? Fault(0) : BAD_WIDTH;
    case RL_ROUTE: return check_route(in);
    case RL_EXPERTS: return routes(in) ? check_experts(in) : BAD_OPERATION;
    case RL_DISPATCH:
    case RL_COMBINE: return routes(in) ? check_moved(in) : BAD_OPERATION;
    case RL_CONV: case RL_SCAN: case RL_GATED_NORM: return check_recurrent(in, batch, pages_checked);
    case RL_ADD: return in.width_in == in.width_out || in.in2 >= 0 ? Fault(0) : BAD_WIDTH;
    case RL_GATHER: return batch.logit_token && in.per_logit_row ? check_batch_for(in, batch) : BAD_BATCH;
    default:
      if (batch.logit_rows > 0 && (!batch.sampling || !batch.sampled)) return BAD_BATCH;
      if (threads * sample_scratch_bytes(in.width_in) > scratch_bytes) return BAD_SCRATCH;
      return check_batch_for(in, batch);
  }
}

// ---- barriers

struct Span {
  int64_t begin, end;
};
Span span(int64_t offset, int64_t bytes) { return offset < 0 ? Span{0, 0} : Span{offset, offset + bytes}; }
bool meet(Span a, Span b) { return a.begin < b.end && b.begin < a.end; }

bool row_wise(int op) {
  return op == RL_EMBED || op == RL_NORM || op == RL_HEAD_NORM || op == RL_ROPE || op == RL_ACTIVATION || op == RL_ADD;
}

// Row-wise operators give the same rows to the same thread (share()), so the next one may start without a barrier unless
// it writes where the one before still reads for other rows (a buffer used again at another width).
bool needs_barrier(const RlInstr& in, const RlInstr& next, const RlBatch& batch) {
  if (!row_wise(in.op) || in.per_logit_row != next.per_logit_row) return true;
  if (next.op == RL_ATTEND) return false;  // its first phase reads own rows and writes the pool only
  if (!row_wise(next.op)) return true;
  const int64_t rows = in.per_logit_row ? batch.logit_rows : batch.tokens;
  const Span writes[2] = {span(next.out, rows * next.width_out * 4),
                          span(next.out_quant, rows * quant_stride(next.width_out))};
  const Span reads[3] = {span(in.in, rows * in.width_in * 4), span(in.in2, rows * in.width_out * 4),
                         span(in.out, rows * in.width_out * 4)};
  for (const Span& write : writes)
    for (const Span& other : reads) {
      const bool in_place = write.begin == other.begin && write.end == other.end;
      if (meet(write, other) && !in_place) return true;
    }
  return meet(span(in.out_quant, rows * quant_stride(in.width_out)), writes[0]) ||
         meet(span(in.out_quant, rows * quant_stride(in.width_out)), writes[1]);
}

struct Run {
  const Step& step;
  const RlInstr* tape;
  int count;
  const Kernels& kernels;
};

void walk(Worker& worker, void* argument) {
  const Run& run = *static_cast<const Run*>(argument);
  const RlBatch& batch = *run.step.batch;
  int64_t* times = worker.thread == 0 ? batch.line_ns : nullptr;
  if (times)
    for (int i = 0; i < run.count; i++) times[run.tape[i].line] = 0;
  int64_t before = times ? nanoseconds() : 0;
  for (int i = 0; i < run.count; i++) {
    const RlInstr& in = run.tape[i];
    run.kernels.op[in.op](worker, run.step, in);
    if (i + 1 < run.count && needs_barrier(in, run.tape[i + 1], batch) && !barrier_or_leave(worker)) return;
    if (times) {  // the last line is billed without waiting for the others; the end barrier is team_run's
      const int64_t now = nanoseconds();
      times[in.line] += now - before;
      before = now;
    }
  }
}

struct Measurement {
  const Kernels& kernels;
  const uint8_t* data;
  int64_t bytes, iterations;
  int kind, threads;
  std::atomic<int64_t> operations{0};
  std::atomic<int64_t> checksum{0};
};

void measure_job(Worker& worker, void* argument) {
  Measurement& m = *static_cast<Measurement*>(argument);
  if (worker.thread >= m.threads) return;
  double operations = 0.0, sum;
  if (m.data) {
    const int64_t begin = m.bytes * worker.thread / m.threads / 64 * 64;
    const int64_t end = m.bytes * (worker.thread + 1) / m.threads / 64 * 64;
    sum = m.kernels.read(m.data + begin, end - begin);
  } else {
    sum = m.kernels.arithmetic(m.kind, m.iterations, &operations);
  }
  m.operations.fetch_add(static_cast<int64_t>(operations));
  m.checksum.fetch_add(sum > 1e18 || sum < -1e18 || sum != sum ? 1 : static_cast<int64_t>(sum));
}

void barrier_job(Worker& worker, void* argument) {
  const int64_t iterations = *static_cast<const int64_t*>(argument);
  for (int64_t i = 0; i < iterations; i++) barrier(worker);
}

double timed(RlTeam* team, Job job, void* argument) {
  const int64_t before = nanoseconds();
  team_run(team, job, argument, false);
  return static_cast<double>(nanoseconds() - before) * 1e-9;
}

}  // namespace
}  // namespace ridgeline

using namespace ridgeline;

int32_t rl_abi_version(void) { return RL_ABI_VERSION; }
int32_t rl_isa_available(void) { return available(); }
int32_t rl_isa_get(void) { return isa(); }
int32_t rl_isa_set(int32_t wanted) {
  if (wanted < RL_PLAIN || wanted > RL_AVX512_BF16 || !(available() >> wanted & 1)) return -1;
  chosen.store(wanted, std::memory_order_relaxed);
  return 0;
}

RlTeam* rl_team_new(int32_t threads) { return team_new(threads); }
void rl_team_free(RlTeam* team) { team_free(team); }

int64_t rl_execute(RlTeam* team, const RlInstr* tape, int32_t count, uint8_t* arena, uint8_t* scratch,
                   int64_t scratch_bytes, const RlPool* pools, int32_t pool_count, const RlBatch* batch) {
  if (!team || !batch || count < 0 || (count && (!tape || !arena))) return -BAD_ARGUMENT;
  if (batch->tokens < 0 || batch->logit_rows < 0 || batch->sequences < 0) return -BAD_BATCH;
  if (reinterpret_cast<uintptr_t>(arena) % 64 || reinterpret_cast<uintptr_t>(scratch) % 64) return -BAD_ARGUMENT;
  if (!scratch) scratch_bytes = 0;
  const RlInstr* checked = nullptr;  // layers that see the same share their pages' check
  bool slots_checked = false;
  for (int i = 0; i < count; i++) {
    const RlInstr& in = tape[i];
    const bool keeps = in.op == RL_CONV || in.op == RL_SCAN;
    const bool again = keeps ? slots_checked :
        checked && checked->group == in.group && checked->window == in.window && checked->sinks == in.sinks;
    if (Fault fault = check(in, *batch, pools, pool_count, scratch_bytes, team_threads(team), again))
      return -(i * 100LL + fault);
    slots_checked = slots_checked || keeps;
    if (in.op == RL_ATTEND) checked = &in;
  }
  if (count == 0 || (batch->tokens == 0 && batch->logit_rows == 0)) return 0;
  Step step{arena, scratch, scratch_bytes, pools, batch};
  Run run{step, tape, count, kernels()};
  team_run(team, walk, &run, true);
  return 0;
}

int64_t rl_scratch_bytes(int32_t threads, int32_t max_tokens, int32_t max_positions, int32_t heads, int32_t head_dim,
                         int32_t vocabulary) {
  // Split attention only pays for few rows: room for four tokens, or as many as fit 16 MiB.
  const int64_t splits = (static_cast<int64_t>(max_positions) + RL_SPLIT_TOKENS - 1) / RL_SPLIT_TOKENS;
  const int64_t token = heads * splits * partial_floats(head_dim) * 4;
  int64_t tokens = max_tokens < 4 ? max_tokens : 4;
  while (tokens > 1 && tokens * token > (16 << 20)) tokens--;
  const int64_t sampling = threads * sample_scratch_bytes(vocabulary);
  const int64_t attention = round_up(tokens * token, 64) + mass_scratch_bytes(max_tokens, heads);
  return round_up(attention > sampling ? attention : sampling, 64);
}

double rl_measure_read(RlTeam* team, const void* data, int64_t bytes, int32_t threads) {
  Measurement m{kernels(), static_cast<const uint8_t*>(data), bytes, 0, 0, threads};
  return timed(team, measure_job, &m);
}

double rl_measure_flops(RlTeam* team, int32_t kind, int64_t iterations, int32_t threads, double* operations) {
  Measurement m{kernels(), nullptr, 0, iterations, kind, threads};
  const double seconds = timed(team, measure_job, &m);
  *operations = static_cast<double>(m.operations.load());
  return seconds;
}

double rl_measure_barrier(RlTeam* team, int64_t iterations) {
  return timed(team, barrier_job, &iterations) / static_cast<double>(iterations);
}
