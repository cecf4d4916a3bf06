// attend: append this step's k and v to the pages, then causal attention of q over the pages (never over the f32 input, so
// that a key means the same whether it came in this chunk or an earlier one).
// A row is (token, q head of one kv head's group). One work item = up to ITEM_ROWS rows x one kv head (x one split of
// RL_SPLIT_TOKENS keys when parallelism is scarce). Keys go by in steps of 64 at absolute places (attend_rows.h); splits are
// merged in order by merge(), also when there is one or when they run in one item.
// The place of a token is its slot as if its branch were all there is: slot of the sequence's first token + depth. So the
// rows of a tree (I9) do what they would do had their branch been computed alone, bit for bit: keys of the tree are gathered
// into pages of that branch first. Sinks (C9) are read as if the window followed them at once: q is turned back by what lies
// between. Mass (C10) is a second pass, rows in order, once their maxima and sums are known.
#include "attend_bodies.h"

namespace ridgeline::RL_ISA {
namespace {

struct Attend {
  const Step& step;
  const RlInstr& in;
  int ratio;         // q heads a kv head
  int sinks;         // 0 without a window: everything is seen anyway
  const int32_t* slots;
  int64_t splits;    // places of partial results a row has; 0: items run all splits themselves
  float* partials;   // [token][head][split][partial_floats]
  float* stats;      // [token][head][maximum, sum] when the pool keeps mass
  bool quant_early;  // groups of 32 columns lie inside heads
  const Bodies& bodies;
};

struct Work {  // rows [row, row + count) of (sequence, kv head)
  int sequence, row, count, kv_head;

  int token(const Attend& job, int r) const { return job.step.batch->first_token[sequence] + (row + r) / job.ratio; }
  int head(const Attend& job, int r) const { return kv_head * job.ratio + (row + r) % job.ratio; }
};

int base_of(const Attend& job, int sequence) { return job.slots[job.step.batch->first_token[sequence]]; }

int place_of(const Attend& job, int token) {
  const RlBatch& batch = *job.step.batch;
  const int first = batch.first_token[batch.sequence_of[token]];
  return job.slots[first] + batch.positions[token] - batch.positions[first];
}

int lowest(const Attend& job, int place) {
  return job.in.window > 0 && place >= job.in.window ? place - job.in.window + 1 : 0;
}

bool reads_split(const Attend& job, int64_t split, int low, int high) {
  return (split >= low / RL_SPLIT_TOKENS && split <= high / RL_SPLIT_TOKENS) || (split == 0 && job.sinks > 0);
}

// Tokens this one sees of its own sequence in the batch, itself included; 0: all before it.
uint64_t branch_of(const RlBatch& batch, int token) {
  const int sequence = batch.sequence_of[token], first = batch.first_token[sequence];
  if (!batch.tree || batch.first_token[sequence + 1] - first > 64) return 0;
  const uint64_t all = ~uint64_t{0} >> (63 - (token - first));
  return batch.tree[token] == all ? 0 : batch.tree[token];
}

// q turned back by `by` positions.
void turn_back(const RlInstr& in, float* q, int by) {
  const int half = in.rotary_dim / 2;
  const float* cos = in.rope_cos + static_cast<int64_t>(by) * half;
  const float* sin = in.rope_sin + static_cast<int64_t>(by) * half;
  const bool is_interleaved = in.flags & RL_ROPE_INTERLEAVED;
  for (int i = 0; i < half; i++) {
    float& x = q[is_interleaved ? 2 * i : i];
    float& y = q[is_interleaved ? 2 * i + 1 : half + i];
    const float a = x, b = y;
    x = a * cos[i] + b * sin[i];
    y = b * cos[i] - a * sin[i];
  }
}

// What a query says at once about every dimension, for storages that keep a shift (pages.h), or as whole numbers.
void finish_query(const Attend& job, Item& item, Query& query, int r) {
  if (job.bodies.round) job.bodies.round(query, r, item.stride, job.in.head_dim);
  if (job.step.pools[job.in.group].storage != RL_KV_INT4) return;
  float sum = 0.0f;
  for (int d = 0; d < job.in.head_dim; d++) sum += query.rows[r * item.stride + d];
  query.sums[r] = sum;
}

void load_rows(const Attend& job, Item& item, const Work& work) {
  const RlInstr& in = job.in;
  const int dim = in.head_dim;
  const int64_t width = static_cast<int64_t>(in.heads + 2 * in.kv_heads) * dim;
  item.rows = work.count;
  item.sinks = job.sinks;
  for (int r = 0; r < work.count; r++) {
    const int token = work.token(job, r);
    const float* q = floats(job.step, in.in) + token * width + static_cast<int64_t>(work.head(job, r)) * dim;
    float* row = item.q.rows + r * item.stride;
    for (int d = 0; d < dim; d++) row[d] = q[d] * in.scale;
    item.high[r] = place_of(job, token);
    item.low[r] = lowest(job, item.high[r]);
    float* turned = item.sink_q.rows + r * item.stride;
    if (job.sinks > 0) memcpy(turned, row, sizeof(float) * dim);
    finish_query(job, item, item.q, r);
    if (job.sinks == 0) continue;
    const int by = job.step.batch->positions[token] - (job.sinks + in.window - 1);
    if (by > 0 && in.rotary_dim > 0) turn_back(in, turned, by);
    finish_query(job, item, item.sink_q, r);
  }
}

// Pages of the 64 keys from `key` on for rows that see the keys low .. high and the sinks.
void find_pages(const Attend& job, const Work& work, int key, int low, int high, Pages& pages) {
  const uint8_t* any = nullptr;
  for (int j = 0; j < STEP_PAGES; j++) {
    const int page_key = key + j * RL_BLOCK_TOKENS;
    const bool seen = page_key <= high && (page_key + RL_BLOCK_TOKENS > low || page_key < job.sinks);
    pages.k[j] = seen ? page_of(job.step, job.in, work.sequence, page_key / RL_BLOCK_TOKENS, work.kv_head) : nullptr;
    if (seen) any = pages.k[j];
  }
  for (int j = 0; j < STEP_PAGES; j++) {
    if (!pages.k[j]) pages.k[j] = any;  // scored for nothing, then masked
    pages.v[j] = pages.k[j] + job.step.pools[job.in.group].page_bytes;
  }
}

// The same for one branch of a tree: its tokens one after another, gathered into item.branch.
void find_branch(const Attend& job, Item& item, const Work& work, int token, int key, Pages& pages) {
  const RlPool& pool = job.step.pools[job.in.group];
  const int bytes = row_bytes(pool.storage, job.in.head_dim), base = base_of(job, work.sequence);
  const int high = place_of(job, token), low = lowest(job, high);
  int path[64], length = 0;
  for (uint64_t left = branch_of(*job.step.batch, token); left; left &= left - 1)
    path[length++] = base + __builtin_ctzll(left);
  for (int j = 0; j < STEP_PAGES; j++) {
    uint8_t* k = item.branch[0] + j * RL_BLOCK_TOKENS * bytes;
    uint8_t* v = item.branch[1] + j * RL_BLOCK_TOKENS * bytes;
    pages.k[j] = k;
    pages.v[j] = v;
    for (int i = 0; i < RL_BLOCK_TOKENS; i++) {
      const int place = key + j * RL_BLOCK_TOKENS + i;
      if (place > high || (place < low && place >= job.sinks)) continue;
      const int slot = place < base ? place : path[place - base];
      const uint8_t* page = page_of(job.step, job.in, work.sequence, slot / RL_BLOCK_TOKENS, work.kv_head);
      copy_key(k, i, page, slot % RL_BLOCK_TOKENS, bytes);
      memcpy(v + i * bytes, page + pool.page_bytes + slot % RL_BLOCK_TOKENS * bytes, bytes);
    }
  }
}

void step_rows(const Stages& stages, Item& item, const Pages& pages, int key, int dim, int begin, int end) {
  const Group* const all[] = {stages.score, stages.soften, stages.weigh};
  for (const Group* stage : all)
    for (int first = begin; first < end; first += GROUP_ROWS)
      stage[(end - first < GROUP_ROWS ? end - first : GROUP_ROWS) - 1](item, first, pages, key, dim);
}

// (most, sum, values) += (most', sum', values') of the next split. The one place where splits meet.
void merge(float& most, float& sum, float* values, float next_most, float next_sum, const float* next, int dim) {
  const float top = next_most > most ? next_most : most;
  if (top == NOTHING) return;
  const F keep = exp(splat(most - top)), take = exp(splat(next_most - top));
  most = top;
  sum = fma(splat(next_sum), take, splat(sum) * keep)[0];
  for (int d = 0; d < dim; d += LANES) store(values + d, fma(load(next + d), take, load(values + d) * keep));
}

float* partial_of(const Attend& job, int64_t token, int head, int64_t split) {
  return job.partials + ((token * job.in.heads + head) * job.splits + split) * partial_floats(job.in.head_dim);
}

void emit(const Attend& job, int64_t token, int head, float most, float sum, const float* values) {
  const int dim = job.in.head_dim;
  const int64_t width = static_cast<int64_t>(job.in.heads) * dim;
  float* row = floats(job.step, job.in.out) + token * width;
  float* out = row + static_cast<int64_t>(head) * dim;
  const float inverse = 1.0f / sum;
  for (int d = 0; d < dim; d++) out[d] = values[d] * inverse;
  if (job.stats) {
    job.stats[(token * job.in.heads + head) * 2] = most;
    job.stats[(token * job.in.heads + head) * 2 + 1] = sum;
  }
  if (job.quant_early)
    quantise(row, static_cast<int64_t>(head) * dim, static_cast<int64_t>(head + 1) * dim,
             quant_row(job.step, job.in.out_quant, width, token, job.step.batch->tokens), job.in.outlier);
}

// Keys of one split, low .. high of them and the sinks.
void run_split(const Attend& job, Item& item, const Work& work, int64_t split, int low, int high, bool has_branches) {
  const int dim = job.in.head_dim, base = base_of(job, work.sequence);
  const Bodies& bodies = job.bodies;
  for (int r = 0; r < work.count; r++) {
    item.most[r] = NOTHING;
    memset(item.sums[r], 0, sizeof item.sums[r]);
    memset(item.values(r), 0, sizeof(float) * round_up(dim, LANES));
  }
  Pages pages, wide;
  for (int key = static_cast<int>(split * RL_SPLIT_TOKENS); key < (split + 1) * RL_SPLIT_TOKENS && key <= high;
       key += STEP_KEYS) {
    if (key + STEP_KEYS <= low && key >= job.sinks) continue;
    if (!has_branches || key + STEP_KEYS <= base) {
      find_pages(job, work, key, low, high, pages);
      if (work.count >= WIDE_ROWS && bodies.widen) {
        bodies.widen(pages, dim, item.wide, wide);
        step_rows(bodies.wide, item, wide, key, dim, 0, work.count);
      } else {
        step_rows(bodies.step, item, pages, key, dim, 0, work.count);
      }
      continue;
    }
    for (int begin = 0, end; begin < work.count; begin = end) {  // the rows of one token
      const int token = work.token(job, begin);
      for (end = begin + 1; end < work.count && work.token(job, end) == token;) end++;
      if (key > item.high[begin]) continue;
      if (branch_of(*job.step.batch, token))
        find_branch(job, item, work, token, key, pages);
      else
        find_pages(job, work, key, low, item.high[begin], pages);
      step_rows(bodies.step, item, pages, key, dim, begin, end);
    }
  }
}

// One item: all its splits, or one of them.
void run_item(const Attend& job, Item& item, const Work& work, int64_t split, bool all) {
  const int dim = job.in.head_dim;
  load_rows(job, item, work);
  int low = 0x7fffffff, high = -1;
  bool has_branches = false;
  for (int r = 0; r < work.count; r++) {
    low = item.low[r] < low ? item.low[r] : low;
    high = item.high[r] > high ? item.high[r] : high;
    has_branches = has_branches || branch_of(*job.step.batch, work.token(job, r));
    item.total_most[r] = NOTHING;
    item.total_sum[r] = 0.0f;
    memset(item.total(r), 0, sizeof(float) * round_up(dim, LANES));
  }
  if (!all) {
    if (!reads_split(job, split, low, high)) return;  // nobody will read it
    run_split(job, item, work, split, low, high, has_branches);
    for (int r = 0; r < work.count; r++) {
      float* partial = partial_of(job, work.token(job, r), work.head(job, r), split);
      partial[0] = item.most[r];
      partial[1] = sum(load(item.sums[r]));
      memcpy(partial + 16, item.values(r), sizeof(float) * round_up(dim, LANES));
    }
    return;
  }
  for (int64_t s = 0; s <= high / RL_SPLIT_TOKENS; s++) {
    if (!reads_split(job, s, low, high)) continue;
    run_split(job, item, work, s, low, high, has_branches);
    for (int r = 0; r < work.count; r++)
      merge(item.total_most[r], item.total_sum[r], item.total(r), item.most[r], sum(load(item.sums[r])), item.values(r),
            dim);
  }
  for (int r = 0; r < work.count; r++)
    emit(job, work.token(job, r), work.head(job, r), item.total_most[r], item.total_sum[r], item.total(r));
}

void merge_rows(const Attend& job, const Worker& worker, Item& item) {
  const RlInstr& in = job.in;
  int64_t begin, end;
  share(static_cast<int64_t>(job.step.batch->tokens) * in.heads, worker, begin, end);
  for (int64_t i = begin; i < end; i++) {
    const int token = static_cast<int>(i / in.heads), head = static_cast<int>(i % in.heads);
    const int high = place_of(job, token), low = lowest(job, high);
    float most = NOTHING, total = 0.0f;
    memset(item.total(0), 0, sizeof(float) * round_up(in.head_dim, LANES));
    for (int64_t s = 0; s <= high / RL_SPLIT_TOKENS; s++) {
      if (!reads_split(job, s, low, high)) continue;
      const float* partial = partial_of(job, token, head, s);
      merge(most, total, item.total(0), partial[0], partial[1], partial + 16, in.head_dim);
    }
    emit(job, token, head, most, total, item.total(0));
  }
}

// Attention mass: per kept token the weights of every row, added token by token and head by head. One item a (sequence, kv
// head), so that each sum is one thread's and its order never changes.
void add_mass(const Attend& job, const Worker& worker, Item& item) {
  const RlInstr& in = job.in;
  const RlBatch& batch = *job.step.batch;
  const Group* groups = job.bodies.again;
  int64_t begin, end;
  share(static_cast<int64_t>(batch.sequences) * in.kv_heads, worker, begin, end);
  for (int64_t i = begin; i < end; i++) {
    Work work{static_cast<int>(i / in.kv_heads), 0, 0, static_cast<int>(i % in.kv_heads)};
    const int rows = (batch.first_token[work.sequence + 1] - batch.first_token[work.sequence]) * job.ratio;
    for (; work.row < rows; work.row += GROUP_ROWS) {
      work.count = rows - work.row < GROUP_ROWS ? rows - work.row : GROUP_ROWS;
      load_rows(job, item, work);
      for (int r = 0; r < work.count; r++) {
        const float* stats = job.stats + (static_cast<int64_t>(work.token(job, r)) * in.heads + work.head(job, r)) * 2;
        item.most[r] = stats[0];
        item.total_sum[r] = stats[1];
      }
      const int low = item.low[0], high = item.high[work.count - 1];
      for (int key = low / STEP_KEYS * STEP_KEYS; key <= high; key += STEP_KEYS) {
        Pages pages;
        find_pages(job, work, key, low, high, pages);
        groups[work.count - 1](item, 0, pages, key, in.head_dim);
        for (int at = 0; at < STEP_KEYS && key + at <= high; at += RL_BLOCK_TOKENS) {
          if (key + at + RL_BLOCK_TOKENS <= low) continue;
          float* mass = mass_of(job.step, in, work.sequence, (key + at) / RL_BLOCK_TOKENS, work.kv_head);
          for (int r = 0; r < work.count; r++)
            for (int l = 0; l < RL_BLOCK_TOKENS; l += LANES)
              store(mass + l, load(mass + l) + load(item.scores[r] + at + l));
        }
      }
    }
  }
}

}  // namespace

void attend(Worker& worker, const Step& step, const RlInstr& in) {
  append(worker, step, in);
  barrier(worker);
  const RlBatch& batch = *step.batch;
  Attend job{step, in, in.heads / in.kv_heads, in.window > 0 ? in.sinks : 0, slots_of(step, in), 0,
             reinterpret_cast<float*>(step.scratch), nullptr, in.out_quant >= 0 && in.head_dim % RL_GROUP == 0,
             bodies_of(step.pools[in.group].storage, step.pools[in.group].mass != nullptr)};
  int64_t room = step.scratch_bytes;
  if (step.pools[in.group].mass) {
    room -= mass_scratch_bytes(batch.tokens, in.heads);
    job.stats = reinterpret_cast<float*>(step.scratch + room);
  }
  // One pass over the sequences decides, alike on every thread, whether splits run as items of their own.
  int64_t items = 0;
  int longest = 0;
  for (int s = 0; s < batch.sequences; s++) {
    const int rows = (batch.first_token[s + 1] - batch.first_token[s]) * job.ratio;
    items += static_cast<int64_t>((rows + ITEM_ROWS - 1) / ITEM_ROWS) * in.kv_heads;
  }
  for (int t = 0; t < batch.tokens; t++) longest = job.slots[t] > longest ? job.slots[t] : longest;
  const int64_t splits = longest / RL_SPLIT_TOKENS + 1;
  if (splits > 1 && worker.threads > 1 && items < 4 * worker.threads &&
      static_cast<int64_t>(batch.tokens) * in.heads * splits * partial_floats(in.head_dim) * 4 <= room)
    job.splits = splits;
  Item item;
  item.stride = static_cast<int>(round_up(in.head_dim, 16)) + 16;
  int64_t ticket = take(worker), base = 0;
  for (int s = 0; s < batch.sequences; s++) {
    const int tokens = batch.first_token[s + 1] - batch.first_token[s], rows = tokens * job.ratio;
    if (tokens == 0) continue;
    const int64_t blocks = (rows + ITEM_ROWS - 1) / ITEM_ROWS;
    const int64_t each = job.splits ? job.splits : 1;
    for (; ticket < base + blocks * in.kv_heads * each; ticket = take(worker)) {
      const int64_t index = ticket - base, split = index % each;
      const int64_t block = blocks - 1 - index / each / in.kv_heads;  // the longest contexts first
      const int row = static_cast<int>(block * ITEM_ROWS), count = rows - row < ITEM_ROWS ? rows - row : ITEM_ROWS;
      run_item(job, item, {s, row, count, static_cast<int>(index / each % in.kv_heads)}, split, job.splits == 0);
    }
    base += blocks * in.kv_heads * each;
  }
  if (job.splits) {
    barrier(worker);
    merge_rows(job, worker, item);
  }
  if (job.stats) {
    barrier(worker);
    add_mass(job, worker, item);
  }
  if (in.out_quant < 0 || job.quant_early) return;
  barrier(worker);
  const int64_t width = static_cast<int64_t>(in.heads) * in.head_dim;
  int64_t begin, end;
  share(batch.tokens, worker, begin, end);
  for (int64_t row = begin; row < end; row++)
    quantise(floats(step, in.out) + row * width, 0, width, quant_row(step, in.out_quant, width, row, batch.tokens),
             in.outlier);
}

}  // namespace ridgeline::RL_ISA
