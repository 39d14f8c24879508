//! What a process reports.

use serde::{Deserialize, Serialize};

/// The result of one workload in one process.
#[derive(Clone, Debug, Default, Serialize, Deserialize, PartialEq)]
pub struct Outcome {
    /// Operations that were counted; what an operation is, the workload says.
    pub operations: u64,
    /// The time that they took.
    pub nanoseconds: f64,
    /// The most resident memory of the process.
    pub peak_rss_kib: u64,
    /// Resident memory at the end of the workload, where it says something: parked threads.
    pub rss_kib: Option<u64>,
    /// Page faults of the workload, with its warm-up.
    pub faults: u64,
    /// Its time in the kernel.
    pub system_micros: u64,
    /// How long the workload took with its warm-up, which is what faults and system time belong to.
    pub whole_nanoseconds: f64,
    /// The most bytes that were asked for and not yet freed; only the counting program knows.
    pub peak_live: Option<u64>,
    /// The time of every call, only in the program that measures it.
    pub malloc: Option<Latency>,
    /// As `malloc`.
    pub free: Option<Latency>,
}

impl Outcome {
    /// Nanoseconds for an operation.
    pub fn per_operation(&self) -> f64 {
        self.nanoseconds / self.operations as f64
    }

    /// All operations, with those of the warm-up, which nobody counted: at the same pace.
    fn whole_operations(&self) -> f64 {
        self.whole_nanoseconds / self.per_operation()
    }

    /// Page faults for a thousand operations.
    pub fn faults_per_thousand(&self) -> f64 {
        self.faults as f64 / self.whole_operations() * 1e3
    }

    /// Nanoseconds in the kernel for an operation.
    pub fn system_per_operation(&self) -> f64 {
        self.system_micros as f64 * 1e3 / self.whole_operations()
    }
}

/// How long calls took, in nanoseconds, without the cost of reading the clock.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize, PartialEq)]
pub struct Latency {
    /// Calls that were recorded.
    pub calls: u64,
    /// Half of them took no longer.
    pub p50: f64,
    /// 99 of 100.
    pub p99: f64,
    /// 999 of 1000.
    pub p999: f64,
    /// The longest.
    pub max: f64,
}

/// What a program says about its allocator.
#[derive(Clone, Debug, Default, Serialize, Deserialize, PartialEq)]
pub struct Description {
    /// The allocator that answers, for instance "jemalloc" or "gperftools".
    pub name: String,
    /// As the library itself tells it, or the version of its crate.
    pub version: String,
    /// For allocators that run in different modes, which it is.
    pub mode: Option<String>,
    /// Bytes of the allocator's own data at the moment of the question, where it can tell.
    pub metadata: Option<u64>,
}
