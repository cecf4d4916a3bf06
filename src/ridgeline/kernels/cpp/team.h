// A persistent team of threads. Owns dispatch, barrier and the ticket counter of dynamic work; knows nothing of kernels.
// No inline functions with external linkage here: this header is read by objects of every instruction set, and the
// linker may keep any one copy.
#pragma once
#include <stdint.h>

struct RlTeam;

namespace ridgeline {

struct Worker {
  RlTeam* team;
  int thread, threads;
};

typedef void (*Job)(Worker& worker, void* argument);

RlTeam* team_new(int threads);
void team_free(RlTeam* team);
int team_threads(const RlTeam* team);
// Caller is thread 0; returns when all are done. may_shrink: where members are kept from running, by barrier_or_leave()
// within the job and from its start for a while after such a job, the caller does it alone.
void team_run(RlTeam* team, Job job, void* argument, bool may_shrink);
void barrier(Worker& worker);           // all threads of the job; also resets the ticket counters
bool barrier_or_leave(Worker& worker);  // likewise; false: this member returns from the job. worker.threads may be less
int64_t take(Worker& worker, int counter = 0);  // next ticket 0, 1, 2, ... of counter 0 or 1 since the last barrier
int64_t nanoseconds();

}  // namespace ridgeline
