//! The allocator that this build is about, by the package's features, and what it says about itself.
//!
//! Each program is a `main` and the `#[global_allocator]`, as in anybody's program with that allocator:
//!
//! | program | allocator | what it is for |
//! |---|---|---|
//! | `child` | itself | throughput, memory, faults |
//! | `child-latency` | with the clock around it | the time of every call |
//! | `child-live` | with a count around it | the bytes that are live at the peak |
//! | `child-constant` | itself | loops with constant layouts; for fat LTO |
//! | `hello` | itself | how a program starts |

#[cfg(linked)]
use bench_workloads::outcome::Description;

/// Declares the allocator of a feature: its type, its value, and what it says about itself.
macro_rules! allocator {
    ($feature:literal, $type:ty, $value:expr, $describe:expr) => {
        /// The allocator's type.
        #[cfg(feature = $feature)]
        pub type Allocator = $type;
        /// The allocator.
        #[cfg(feature = $feature)]
        pub const ALLOCATOR: Allocator = $value;
        /// What it is and how it runs here.
        #[cfg(feature = $feature)]
        pub fn describe() -> Description {
            $describe
        }
    };
}

#[cfg(all(linked, not(feature = "rseq")))]
fn of_crate(name: &str, version: String) -> Description {
    Description { name: name.to_owned(), version, ..Description::default() }
}

allocator!(
    "rseq",
    alloc_core::RseqAlloc,
    alloc_core::RseqAlloc::new(),
    Description {
        name: "rseq-alloc".to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        mode: Some(alloc_core::mode().to_string()),
        metadata: Some(alloc_core::stats().metadata as u64),
    }
);

allocator!(
    "snmalloc",
    snmalloc_rs::SnMalloc,
    snmalloc_rs::SnMalloc,
    of_crate("snmalloc", env!("VERSION_snmalloc_sys").to_owned())
);

allocator!(
    "rpmalloc",
    rpmalloc::RpMalloc,
    rpmalloc::RpMalloc,
    of_crate("rpmalloc", format!("crate {}", env!("VERSION_rpmalloc_sys")))
);

allocator!(
    "jemalloc",
    tikv_jemallocator::Jemalloc,
    tikv_jemallocator::Jemalloc,
    of_crate("jemalloc", peers::jemalloc_version())
);

allocator!("mimalloc3", mimalloc::MiMalloc, mimalloc::MiMalloc, of_crate("mimalloc", peers::mimalloc_version()));

allocator!("mimalloc2", mimalloc::MiMalloc, mimalloc::MiMalloc, of_crate("mimalloc", peers::mimalloc_version()));

allocator!(
    "tcmalloc",
    tcmalloc_better::TCMalloc,
    tcmalloc_better::TCMalloc,
    Description {
        mode: Some(peers::tcmalloc_mode()),
        ..of_crate("tcmalloc", format!("crate {}", env!("VERSION_libtcmalloc_sys")))
    }
);

#[cfg(not(linked))]
mod system;
#[cfg(not(linked))]
pub use system::{ALLOCATOR, Allocator, describe};

mod peers;
