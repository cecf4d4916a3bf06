// attend: append this step's k and v to the pages, then causal attention of q over the pages (never over the f32 input, so
// that a key means the same whether it came in this chunk or an earlier one).
// A row is (token, q head of one kv head's group). One work item = up to ITEM_ROWS rows x one kv head (x one split of
// RL_SPLIT_TOKENS keys when parallelism is scarce). Keys go by in steps of 64 at absolute places (attend_rows.h); splits are
// merged in order by merge(), also when there is one or when they run in one item.
// The place of a token is its slot as if its branch were all there is: slot of the sequence's first token + depth. So the
// rows of a tree (I9) do what they would do had their branch been computed alone, bit for bit: keys of the tree are gathered
// into pages of that branch first. Sinks (C9) are read as if the window followed them at once: q is turned back by what lies
// between. Mass (C10) is a second pass, rows in order, once their maxima and sums are known.
#include "attend_items.h"

namespace ridgeline::RL_ISA {
namespace {

constexpr int MOST_ROWS = 0x7fffffff;

// Items of entries with rows `least` .. `most`, each drawn once by whoever comes next: sequences in the order of the batch,
// in each the longest contexts first.
struct Queue {
  const Attend& job;
  Worker& worker;
  int counter;  // of the team's tickets
  int least, most;
  int sequence = 0;
  int64_t base = 0, ticket = 0;  // of the sequence's first item; of the last one drawn
  bool is_empty = false;

  bool next(Work& work, int64_t& split) {
    const RlBatch& batch = *job.step.batch;
    const int64_t each = job.splits ? job.splits : 1;
    if (!is_empty) ticket = take(worker, counter);
    for (; sequence < batch.sequences; sequence++) {
      const int rows = (batch.first_token[sequence + 1] - batch.first_token[sequence]) * job.ratio;
      if (rows < least || rows > most) continue;
      const int64_t blocks = (rows + ITEM_ROWS - 1) / ITEM_ROWS, index = ticket - base;
      if (index >= blocks * job.in.kv_heads * each) {
        base += blocks * job.in.kv_heads * each;
        continue;
      }
      split = index % each;
      const int row = static_cast<int>(blocks - 1 - index / each / job.in.kv_heads) * ITEM_ROWS;
      work = {sequence, row, rows - row < ITEM_ROWS ? rows - row : ITEM_ROWS,
              static_cast<int>(index / each % job.in.kv_heads)};
      return true;
    }
    is_empty = true;
    return false;
  }
  // Turns, a split each, that all its items take.
  int64_t turns() const {
    const RlBatch& batch = *job.step.batch;
    int64_t turns = 0;
    for (int s = 0; s < batch.sequences; s++) {
      const int rows = (batch.first_token[s + 1] - batch.first_token[s]) * job.ratio;
      if (rows < least || rows > most) continue;
      for (int row = 0; row < rows; row += ITEM_ROWS) {
        const int last = (row + ITEM_ROWS < rows ? row + ITEM_ROWS : rows) - 1;
        turns += job.in.kv_heads * (place_of(job, batch.first_token[s] + last / job.ratio) / RL_SPLIT_TOKENS + 1);
      }
    }
    return turns;
  }
};

// The pages of a course's next turns, to be fetched beside the rows of `tile`.
void list_ahead(const Attend& job, Item& tile, Course& course) {
  const int room = static_cast<int>(FETCH_BYTES / (2 * job.step.pools[job.in.group].page_bytes));
  const int end = course.key + (room < LIST_PAGES ? room : LIST_PAGES) * RL_BLOCK_TOKENS;
  int& key = course.listed = course.listed > course.key ? course.listed : course.key;
  for (tile.list_at = tile.list_end = 0; key <= course.high && key < end && !job.recent; key += RL_BLOCK_TOKENS)
    if (key + RL_BLOCK_TOKENS > course.low || key < job.sinks)
      tile.list[tile.list_end++] = page_of(job.step, job.in, course.work.sequence, key / RL_BLOCK_TOKENS,
                                           course.work.kv_head);
}

// Co-run (E1, E2): each thread has one item of many rows, bound by arithmetic, and one of few rows, bound by reading, under
// way, and draws which of them gets the next turn, a split of keys. Turns of the two kinds mix in the ratio of the whole step, within one,
// until a kind is used up (tests/kernels/turns.py says the same in Python). While rows are multiplied, the pages of the
// thread's next turns of the other kind are fetched.
void run_together(const Attend& job, Worker& worker, Item& tile) {
  const RlBatch& batch = *job.step.batch;
  Item pages;
  pages.stride = tile.stride;
  Item* const items[2] = {&tile, &pages};
  Queue queues[2] = {{job, worker, 0, PAGE_ROWS, MOST_ROWS}, {job, worker, 1, 1, PAGE_ROWS - 1}};
  const int64_t tiles = queues[0].turns(), all = tiles + queues[1].turns();
  Course courses[2];
  for (Course& course : courses) course.key = 0, course.high = -1;
  for (int64_t turn = 0; all > 0; turn++) {
    for (int kind = 0; kind < 2; kind++) {
      Work work;
      int64_t split;
      if (courses[kind].is_over() && queues[kind].next(work, split)) courses[kind] = begin(job, *items[kind], work);
    }
    int kind = (turn + 1) * tiles / all > turn * tiles / all ? 0 : 1;
    if (courses[kind].is_over()) kind = 1 - kind;
    if (courses[kind].is_over()) return;
    if (batch.turns && turn < batch.turns_room)
      batch.turns[worker.thread * static_cast<int64_t>(batch.turns_room) + turn] =
          static_cast<int32_t>(kind ? -1 - queues[1].ticket : queues[0].ticket);
    if (kind == 0) list_ahead(job, tile, courses[1]);
    advance(job, *items[kind], courses[kind]);
  }
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
        item.next = pages;
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
  RlInstr near = in;
  const bool closes = is_closed(step.pools[in.group].storage);
  if (closes) near.group = in.recent;
  append(worker, step, near);
  barrier(worker);
  if (closes) {
    close_blocks(worker, step, in, near);
    barrier(worker);
  }
  const RlBatch& batch = *step.batch;
  const Attend recent{step, near, in.heads / in.kv_heads, 0, slots_of(step, near), 0, nullptr, nullptr, false,
                      BODIES<Bf16Pages>, nullptr};
  Attend job{step, in, in.heads / in.kv_heads, in.window > 0 ? in.sinks : 0, slots_of(step, in), 0,
             reinterpret_cast<float*>(step.scratch), nullptr, in.out_quant >= 0 && in.head_dim % RL_GROUP == 0,
             bodies_of(step.pools[in.group].storage, step.pools[in.group].mass != nullptr), closes ? &recent : nullptr};
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
  if (batch.corun && !job.splits) {
    run_together(job, worker, item);
  } else {
    Queue all{job, worker, 0, 1, MOST_ROWS};
    Work work;
    for (int64_t split = 0; all.next(work, split);) {
      if (job.splits) {
        run_part(job, item, work, split);
        continue;
      }
      for (Course course = begin(job, item, work); !course.is_over();) advance(job, item, course);
    }
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
