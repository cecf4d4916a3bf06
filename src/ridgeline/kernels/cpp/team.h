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
void team_run(RlTeam* team, Job job, void* argument);  // caller is thread 0; returns when all are done
void barrier(Worker& worker);          // all threads of the job; also resets the ticket counter
int64_t take(Worker& worker);          // next ticket 0, 1, 2, ... since the last barrier
int64_t nanoseconds();

}  // namespace ridgeline
