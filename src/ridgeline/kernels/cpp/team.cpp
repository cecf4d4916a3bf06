// Why own threads: a step has ~200-300 barriers of a few microseconds of work between them; OpenMP's cost 1.4-45 us.
// Why spin, then sleep: a pure spin barrier is fastest when alone but measured up to 8 s a token when another job takes
// the cores (KERNELS.md §1). Everybody therefore spins SPIN_NS and then sleeps on a futex; a sleeping waiter is counted so
// that the releaser pays for a system call only when somebody sleeps. With more threads than cores nobody spins.
// Why look at processor numbers: schedulers (above all in virtual machines that pack threads) wake a sleeper on the waker's
// processor and leave it there for 100 ms and more, where each waits for the other to stop spinning: measured 43 us a
// barrier instead of 0.18 us. So members publish where they run; one that shares a processor does not spin, and the later
// member moves itself away once, then ever more rarely if it is brought back (another job has that processor).
// Why a job may go on with one thread: beside a job that keeps a processor busy, whoever was released waits for that
// processor up to a slice (3 ms and more; 78 ms were measured on a loaded machine), at each of 200 barriers. A member that
// runs long after it was released is late; when that was more than half of a job's time so far, the team goes on with the
// caller alone, rests, and tries again, ever more rarely while it keeps failing. Bits do not depend on the number of threads.
#include "team.h"

#include <errno.h>
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <atomic>
#include <new>

namespace ridgeline {

int64_t nanoseconds() {
  timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return now.tv_sec * 1000000000LL + now.tv_nsec;
}

namespace {

constexpr int64_t SPIN_NS = 40000;  // KERNELS.md: 20-50 us
constexpr int MAX_THREADS = 512;
constexpr int64_t MOVE_AGAIN_NS = 2000000, MOVE_RARELY_NS = 1000000000;
constexpr int64_t LATE_NS = 1000000, REST_NS = 100000000, LONGEST_REST_NS = 10000000000;
constexpr int64_t LATE_LIMIT_NS = 6000000, REST_TIMES = 16;  // a try that failed costs a sixteenth of the rest at most
constexpr int CALM_JOBS = 50;

typedef std::atomic<uint32_t> Word;

void futex_wait(Word& word, uint32_t seen) {
  syscall(SYS_futex, reinterpret_cast<uint32_t*>(&word), FUTEX_WAIT_PRIVATE, seen, nullptr, nullptr, 0);
}
void futex_wake(Word& word) {
  syscall(SYS_futex, reinterpret_cast<uint32_t*>(&word), FUTEX_WAKE_PRIVATE, 0x7fffffff, nullptr, nullptr, 0);
}

void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// A number that only grows; waiters sleep until it differs from what they saw. seq_cst on both sides makes
// "raise, then look for sleepers" and "count myself, then look at the number" never miss each other.
struct alignas(64) Gate {
  Word number{0};
  std::atomic<int64_t> raised_ns{0};  // when, written before the number is
  alignas(64) Word sleepers{0};

  void raise() {
    raised_ns.store(nanoseconds(), std::memory_order_relaxed);
    number.fetch_add(1);
    if (sleepers.load()) futex_wake(number);
  }
  // Nanoseconds that the caller went on after it could have, 0 below LATE_NS.
  int64_t wait_change(uint32_t seen, int64_t spin_ns) {
    if (spin_ns > 0) {
      int64_t end = 0;
      do {
        for (int i = 0; i < 64; i++) {
          if (number.load(std::memory_order_acquire) != seen) return end ? late_ns() : 0;
          relax();
        }
        if (!end) end = nanoseconds() + spin_ns;
      } while (nanoseconds() < end);
    }
    sleepers.fetch_add(1);
    while (number.load() == seen) futex_wait(number, seen);
    sleepers.fetch_sub(1);
    return late_ns();
  }
  int64_t late_ns() const {
    const int64_t late = nanoseconds() - raised_ns.load(std::memory_order_relaxed);
    return late > LATE_NS ? late : 0;
  }
};

}  // namespace
}  // namespace ridgeline

using namespace ridgeline;

struct RlTeam {
  Gate dispatch, phase;
  alignas(64) std::atomic<int> arrived{0};
  alignas(64) std::atomic<int64_t> tickets[2] = {{0}, {0}};
  alignas(64) Job job = nullptr;
  void* argument = nullptr;
  bool stop = false;
  int64_t spin_ns = 0;
  int threads = 1;
  alignas(64) std::atomic<int64_t> late_ns{0};  // that members were, in this job
  int64_t began_ns = 0;                    // of this job
  std::atomic<int> active{1};              // members that go on: all, or the caller alone
  int64_t rest_ns = REST_NS, rest_end = 0;  // the caller's
  int calm = 0;                            // jobs in a row without anybody late
  pthread_t handles[MAX_THREADS];
  Worker workers[MAX_THREADS];
  alignas(64) std::atomic<int> cpu[MAX_THREADS];  // where each member was last seen; written only when it changes
  alignas(64) int64_t next_move[MAX_THREADS], move_pause[MAX_THREADS];  // own entries only
};

namespace ridgeline {
namespace {

// Moves the calling thread to a processor on which no member was seen; its affinity is as before afterwards.
void move_away(const RlTeam& team) {
  cpu_set_t allowed, target;
  if (sched_getaffinity(0, sizeof allowed, &allowed) != 0) return;
  target = allowed;
  for (int i = 0; i < team.threads; i++) {
    const int cpu = team.cpu[i].load(std::memory_order_relaxed);
    if (cpu >= 0 && cpu < CPU_SETSIZE) CPU_CLR(cpu, &target);
  }
  if (CPU_COUNT(&target) == 0) return;
  if (sched_setaffinity(0, sizeof target, &target) == 0) sched_setaffinity(0, sizeof allowed, &allowed);
}

// Publishes where this member runs. True: another one was last seen here, so spinning would keep it from running.
bool is_crowded(const Worker& worker) {
  RlTeam& team = *worker.team;
  const int me = worker.thread, cpu = sched_getcpu();
  if (team.cpu[me].load(std::memory_order_relaxed) != cpu) team.cpu[me].store(cpu, std::memory_order_relaxed);
  bool crowded = false, is_later = false;
  for (int i = 0; i < team.threads; i++)
    if (i != me && team.cpu[i].load(std::memory_order_relaxed) == cpu) {
      crowded = true;
      is_later |= i < me;
    }
  if (!is_later) return crowded;
  const int64_t now = nanoseconds();
  if (now < team.next_move[me]) return true;
  const bool soon = now < team.next_move[me] + 50 * MOVE_AGAIN_NS;  // brought back shortly after the last move
  team.move_pause[me] = soon ? team.move_pause[me] * 2 : MOVE_AGAIN_NS;
  if (team.move_pause[me] > MOVE_RARELY_NS) team.move_pause[me] = MOVE_RARELY_NS;
  team.next_move[me] = now + team.move_pause[me];
  move_away(team);
  team.cpu[me].store(sched_getcpu(), std::memory_order_relaxed);
  return false;
}

void* live(void* raw) {
  Worker& worker = *static_cast<Worker*>(raw);
  RlTeam& team = *worker.team;
  // The first job is number 1. The end-of-job barrier keeps the next dispatch from being raised before everyone has
  // taken this one, so a worker never misses a number.
  for (uint32_t seen = 0;; seen++) {
    const int64_t late_ns = team.dispatch.wait_change(seen, team.spin_ns);
    if (late_ns) team.late_ns.fetch_add(late_ns, std::memory_order_relaxed);
    if (team.stop) return nullptr;
    worker.threads = team.threads;
    team.job(worker, team.argument);
    barrier(worker);
  }
}

void reset(RlTeam* team) {
  for (auto& ticket : team->tickets) ticket.store(0, std::memory_order_relaxed);
}

int cores() {
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) == 0) return CPU_COUNT(&set);
  return static_cast<int>(sysconf(_SC_NPROCESSORS_ONLN));
}

}  // namespace

RlTeam* team_new(int threads) {
  if (threads < 1 || threads > MAX_THREADS) return nullptr;
  void* place = aligned_alloc(64, (sizeof(RlTeam) + 63) / 64 * 64);
  if (!place) return nullptr;
  RlTeam* team = new (place) RlTeam;
  team->spin_ns = threads <= cores() ? SPIN_NS : 0;
  for (int i = 0; i < MAX_THREADS; i++) {
    team->cpu[i].store(-1, std::memory_order_relaxed);
    team->next_move[i] = 0;
    team->move_pause[i] = MOVE_AGAIN_NS;
  }
  for (int i = 1; i < threads; i++) {
    team->workers[i] = Worker{team, i, threads};
    if (pthread_create(&team->handles[i], nullptr, live, &team->workers[i]) != 0) {
      team_free(team);  // joins those that were born
      return nullptr;
    }
    team->threads = i + 1;
  }
  return team;
}

void team_free(RlTeam* team) {
  if (!team) return;
  team->stop = true;
  team->dispatch.raise();
  for (int i = 1; i < team->threads; i++) pthread_join(team->handles[i], nullptr);
  free(team);
}

int team_threads(const RlTeam* team) { return team->threads; }

void team_run(RlTeam* team, Job job, void* argument, bool may_shrink) {
  Worker worker{team, 0, team->threads};
  reset(team);
  if (may_shrink && team->rest_end && nanoseconds() < team->rest_end) worker.threads = 1;
  if (worker.threads == 1) return job(worker, argument);
  team->began_ns = nanoseconds();
  team->late_ns.store(0, std::memory_order_relaxed);
  team->active.store(team->threads, std::memory_order_relaxed);
  team->job = job;
  team->argument = argument;
  team->dispatch.raise();
  job(worker, argument);
  worker.threads = team->threads;  // those who left wait here
  barrier(worker);
  if (team->active.load(std::memory_order_relaxed) < team->threads) {
    const int64_t now = nanoseconds(), fair = REST_TIMES * team->late_ns.load(std::memory_order_relaxed);
    const int64_t rest = fair > team->rest_ns ? fair : team->rest_ns;
    team->rest_end = now + (rest < LONGEST_REST_NS ? rest : LONGEST_REST_NS);
    team->rest_ns = team->rest_ns * 2 < LONGEST_REST_NS ? team->rest_ns * 2 : LONGEST_REST_NS;
    team->calm = 0;
  } else if (team->late_ns.load(std::memory_order_relaxed) == 0 && ++team->calm >= CALM_JOBS) {
    team->rest_ns = REST_NS;
  }
}

namespace {

void meet(Worker& worker, bool may_shrink) {
  RlTeam* team = worker.team;
  const bool crowded = team->spin_ns > 0 && is_crowded(worker);
  const uint32_t seen = team->phase.number.load(std::memory_order_acquire);
  if (team->arrived.fetch_add(1, std::memory_order_acq_rel) == worker.threads - 1) {
    team->arrived.store(0, std::memory_order_relaxed);
    reset(team);
    const int64_t late_ns = team->late_ns.load(std::memory_order_relaxed);
    if (may_shrink && late_ns > LATE_LIMIT_NS && 2 * late_ns > nanoseconds() - team->began_ns)
      team->active.store(1, std::memory_order_relaxed);
    team->phase.raise();
  } else if (const int64_t late_ns = team->phase.wait_change(seen, crowded ? 0 : team->spin_ns)) {
    team->late_ns.fetch_add(late_ns, std::memory_order_relaxed);
  }
}

}  // namespace

void barrier(Worker& worker) {
  if (worker.threads == 1) return reset(worker.team);
  meet(worker, false);
}

bool barrier_or_leave(Worker& worker) {
  if (worker.threads == 1) {
    reset(worker.team);
    return true;
  }
  meet(worker, true);
  // Written before everybody was released, and not again until all have met at the job's end.
  const int active = worker.team->active.load(std::memory_order_relaxed);
  if (worker.thread >= active) return false;
  worker.threads = active;
  return true;
}

int64_t take(Worker& worker, int counter) {
  return worker.team->tickets[counter].fetch_add(1, std::memory_order_relaxed);
}

}  // namespace ridgeline
