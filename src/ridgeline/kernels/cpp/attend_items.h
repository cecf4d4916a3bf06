// One item of attention on its way over its keys: rows of a sequence and one kv head, split by split (attend.cpp says who
// runs which item when).
#pragma once
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
  const Attend* recent;  // the same over the bf16 pages of what is not closed yet; null: nothing is ever closed
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

// The bytes that full groups fetch meanwhile: a page of keys and one of values of the next step, or of what is listed.
void feed(const Attend& job, Item& item) {
  const uint8_t* at = item.near > 0 ? item.next.k[--item.near]
                      : item.list_at < item.list_end ? item.list[item.list_at++]
                                                     : nullptr;
  item.ahead_step = at ? FETCH_STRIDE : 0;
  item.ahead = at ? at : reinterpret_cast<const uint8_t*>(item.most);
  item.ahead_end = at ? at + 2 * job.step.pools[job.in.group].page_bytes : item.ahead;
}

void load_rows(const Attend& job, Item& item, const Work& work) {
  item.near = item.list_at = item.list_end = 0;
  feed(job, item);
  const RlInstr& in = job.in;
  const int dim = in.head_dim;
  const int64_t width = static_cast<int64_t>(in.heads + 2 * in.kv_heads) * dim;
  item.rows = work.count;
  item.block = is_closed(job.step.pools[in.group].storage) ? block_of_storage(job.step.pools[in.group].storage) : 0;
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

void step_rows(const Attend& job, const Stages& stages, Item& item, const Pages& pages, int key, int begin, int end) {
  const Group* const all[] = {stages.score, stages.soften, stages.weigh};
  for (const Group* stage : all)
    for (int first = begin; first < end; first += GROUP_ROWS) {
      if (item.ahead >= item.ahead_end) feed(job, item);
      stage[(end - first < GROUP_ROWS ? end - first : GROUP_ROWS) - 1](item, first, pages, key, job.in.head_dim);
    }
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

// An item on its way from split to split.
struct Course {
  Work work;
  int low, high;      // keys that its rows see, beside the sinks
  bool has_branches;
  int key;            // the first of the next split
  int listed;         // keys before this one were listed for fetching

  bool is_over() const { return key > high; }
};

Course begin(const Attend& job, Item& item, const Work& work) {
  load_rows(job, item, work);
  Course course{work, 0x7fffffff, -1, false, 0, 0};
  for (int r = 0; r < work.count; r++) {
    course.low = item.low[r] < course.low ? item.low[r] : course.low;
    course.high = item.high[r] > course.high ? item.high[r] : course.high;
    course.has_branches = course.has_branches || branch_of(*job.step.batch, work.token(job, r));
    item.total_most[r] = NOTHING;
    item.total_sum[r] = 0.0f;
    memset(item.total(r), 0, sizeof(float) * round_up(job.in.head_dim, LANES));
  }
  return course;
}

// 64 keys of a storage that closes blocks: a row sees sinks and its own block in bf16, what lies between as codes. All three
// end at places that only its own place decides.
void run_closed_step(const Attend& job, Item& item, const Work& work, int key) {
  const RlPool& pool = job.step.pools[job.in.group];
  const int block = item.block, sinks = sinks_of_storage(pool.storage);
  for (int part = 0; part < 3; part++) {
    int begin = work.count, end = 0, low = 0x7fffffff, high = -1;
    for (int r = 0; r < work.count; r++) {
      const int place = place_of(job, work.token(job, r)), closed = place / block * block;
      item.low[r] = part == 0 ? 0 : part == 1 ? sinks : closed;
      item.high[r] = part == 0 ? (sinks < closed ? sinks : closed) - 1 : part == 1 ? closed - 1 : place;
      if (item.high[r] < key || item.low[r] >= key + STEP_KEYS) continue;
      begin = begin < r ? begin : r;
      end = r + 1;
      low = item.low[r] < low ? item.low[r] : low;
      high = item.high[r] > high ? item.high[r] : high;
    }
    if (begin >= end) continue;
    const Attend& from = part == 1 ? job : *job.recent;
    Pages pages;
    find_pages(from, work, key, part == 1 ? 0 : low, high, pages);  // all of a closed block, or none
    item.next = pages;
    if (part == 1 && key + STEP_KEYS <= high) find_pages(job, work, key + STEP_KEYS, 0, high, item.next);
    for (int j = 0; j < STEP_PAGES && part == 1; j++) fetch(item.next.k[j], 2 * pool.page_bytes);
    step_rows(from, from.bodies.step, item, pages, key, begin, end);
  }
}

// Keys of the split from key `from` on, low .. high of them and the sinks.
void run_split(const Attend& job, Item& item, const Course& course, int from) {
  const Work& work = course.work;
  const int dim = job.in.head_dim, base = base_of(job, work.sequence), low = course.low, high = course.high;
  const Bodies& bodies = job.bodies;
  for (int r = 0; r < work.count; r++) {
    item.most[r] = NOTHING;
    memset(item.sums[r], 0, sizeof item.sums[r]);
    memset(item.values(r), 0, sizeof(float) * round_up(dim, LANES));
  }
  Pages pages, wide;
  for (int key = from; key < from + RL_SPLIT_TOKENS && key <= high; key += STEP_KEYS) {
    if (key + STEP_KEYS <= low && key >= job.sinks) continue;
    if (job.recent) {
      run_closed_step(job, item, work, key);
      continue;
    }
    if (!course.has_branches || key + STEP_KEYS <= base) {
      const bool is_last = key + STEP_KEYS > high;
      find_pages(job, work, key, low, high, pages);
      item.next = pages;
      if (!is_last) find_pages(job, work, key + STEP_KEYS, low, high, item.next);
      if (!item.next.k[0]) item.next = pages;  // between the sinks and the window
      if (work.count >= WIDE_ROWS && bodies.widen) {
        item.near = is_last ? 0 : STEP_PAGES;
        bodies.widen(pages, dim, item.wide, wide);
        step_rows(job, bodies.wide, item, wide, key, 0, work.count);
      } else {
        step_rows(job, bodies.step, item, pages, key, 0, work.count);
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
      item.next = pages;
      step_rows(job, bodies.step, item, pages, key, begin, end);
    }
  }
}

// The next split; behind the last one the rows come out.
void advance(const Attend& job, Item& item, Course& course) {
  const Work& work = course.work;
  const int from = course.key;
  course.key += RL_SPLIT_TOKENS;
  if (!reads_split(job, from / RL_SPLIT_TOKENS, course.low, course.high)) return;
  run_split(job, item, course, from);
  for (int r = 0; r < work.count; r++)
    merge(item.total_most[r], item.total_sum[r], item.total(r), item.most[r], sum(load(item.sums[r])), item.values(r),
          job.in.head_dim);
  for (int r = 0; r < work.count && course.is_over(); r++)
    emit(job, work.token(job, r), work.head(job, r), item.total_most[r], item.total_sum[r], item.total(r));
}

// One split of an item whose splits are items of their own.
void run_part(const Attend& job, Item& item, const Work& work, int64_t split) {
  const Course course = begin(job, item, work);
  if (!reads_split(job, split, course.low, course.high)) return;  // nobody will read it
  run_split(job, item, course, static_cast<int>(split) * RL_SPLIT_TOKENS);
  for (int r = 0; r < work.count; r++) {
    float* partial = partial_of(job, work.token(job, r), work.head(job, r), split);
    partial[0] = item.most[r];
    partial[1] = sum(load(item.sums[r]));
    memcpy(partial + 16, item.values(r), sizeof(float) * round_up(job.in.head_dim, LANES));
  }
}

}  // namespace
}  // namespace ridgeline::RL_ISA
