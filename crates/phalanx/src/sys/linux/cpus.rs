//! How many CPUs this process may use: sched_getaffinity(2), and the quotas of cgroups(7).
//!
//! A container's share of the machine is mostly a quota: so many microseconds of CPU time in each
//! period. The affinity mask does not show it, and a process that starts a worker for each CPU of
//! the machine then has them throttled in turn. A quota holds for a group and all below it, so the
//! smallest on the way up counts.
//!
//! | | where the group is | its quota |
//! | --- | --- | --- |
//! | version 1 | `N:cpu,cpuacct:/group` in `/proc/self/cgroup` | `cpu.cfs_quota_us`, -1 for none; `cpu.cfs_period_us` |
//! | version 2 | `0::/group` | `cpu.max`: `QUOTA PERIOD`, `max` for none |
//!
//! Both kinds may be mounted, anywhere, and a container may see only a part of the tree: which one,
//! `/proc/self/mountinfo` says. What cannot be read limits nothing.

use std::fs;
use std::path::{Path, PathBuf};

use rustix::thread::sched_getaffinity;

/// CPUs that this process may run on, at least 1.
pub(crate) fn in_affinity() -> usize {
    match sched_getaffinity(None) {
        Ok(set) => (set.count() as usize).max(1),
        // More CPUs than the mask has room for.
        Err(_) => std::thread::available_parallelism().map_or(1, usize::from),
    }
}

/// CPUs' worth of time that the process's control groups give it, as far as the files below `root`
/// (`/`, but for tests) tell.
pub(crate) fn quota(root: &Path) -> Option<f64> {
    let groups = fs::read_to_string(root.join("proc/self/cgroup")).ok()?;
    let mounts = fs::read_to_string(root.join("proc/self/mountinfo")).ok()?;
    let mounts: Vec<_> = mounts.lines().filter_map(Mount::parse).collect();
    let quotas = groups.lines().filter_map(|line| {
        let mut parts = line.splitn(3, ':');
        let (_, controllers, group) = (parts.next()?, parts.next()?, parts.next()?);
        let kind = Kind::of(controllers)?;
        mounts.iter().filter(|mount| mount.kind == kind).find_map(|mount| mount.quota(root, group))
    });
    quotas.reduce(f64::min)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    One,
    Two,
}

impl Kind {
    fn of(controllers: &str) -> Option<Self> {
        match controllers {
            "" => Some(Self::Two),
            _ => controllers.split(',').any(|each| each == "cpu").then_some(Self::One),
        }
    }

    fn read(self, group: &Path) -> Option<f64> {
        let read = |name| fs::read_to_string(group.join(name)).ok();
        let (quota, period) = match self {
            Self::One => (read("cpu.cfs_quota_us")?, read("cpu.cfs_period_us")?),
            Self::Two => {
                let both = read("cpu.max")?;
                let (quota, period) = both.trim().split_once(' ')?;
                (quota.into(), period.into())
            }
        };
        let (quota, period): (f64, f64) = (quota.trim().parse().ok()?, period.trim().parse().ok()?);
        (quota > 0.0 && period > 0.0).then(|| quota / period)
    }
}

/// A tree of control groups that has to do with CPUs, or the part of one that is seen here.
struct Mount {
    kind: Kind,
    /// Which part of the tree.
    part: PathBuf,
    place: PathBuf,
}

impl Mount {
    /// From a line such as `32 31 0:29 /part /place rw - cgroup cgroup rw,cpu`.
    fn parse(line: &str) -> Option<Self> {
        let (before, after) = line.split_once(" - ")?;
        let mut before = before.split(' ').skip(3);
        let (part, place) = (before.next()?.into(), before.next()?.into());
        let mut after = after.split(' ');
        let kind = match after.next()? {
            "cgroup2" => Kind::Two,
            "cgroup" => Kind::of(after.nth(1)?).filter(|kind| *kind == Kind::One)?,
            _ => return None,
        };
        Some(Self { kind, part, place })
    }

    /// The smallest quota from `group` up to the highest group that is seen.
    fn quota(&self, root: &Path, group: &str) -> Option<f64> {
        let place = root.join(self.place.strip_prefix("/").unwrap_or(&self.place));
        // A group outside of the part that we see: what we see is the best that we know.
        let below = Path::new(group).strip_prefix(&self.part).unwrap_or(Path::new(""));
        let below = if group.contains("..") { Path::new("") } else { below };
        let groups = below.ancestors().filter_map(|each| self.kind.read(&place.join(each)));
        groups.reduce(f64::min)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A made-up machine's files, below a folder that goes with this.
    struct Root(PathBuf);

    impl Root {
        fn new(name: &str, files: &[(&str, &str)]) -> Self {
            let path = std::env::temp_dir().join(format!("{name}-{}", std::process::id()));
            for (file, text) in files {
                let file = path.join(file);
                fs::create_dir_all(file.parent().unwrap()).unwrap();
                fs::write(file, text).unwrap();
            }
            Self(path)
        }
    }

    impl Drop for Root {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    const TWO: &str = "30 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n";
    const ONE: &str = "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755\n\
                       32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n\
                       33 31 0:30 / /sys/fs/cgroup/cpuset rw - cgroup cgroup rw,cpuset\n";

    fn quota_of(name: &str, files: &[(&str, &str)]) -> Option<f64> {
        quota(&Root::new(name, files).0)
    }

    #[test]
    fn version_2_has_its_quota_in_one_file() {
        let files = [
            ("proc/self/cgroup", "0::/app\n"),
            ("proc/self/mountinfo", TWO),
            ("sys/fs/cgroup/app/cpu.max", "150000 100000\n"),
        ];
        assert_eq!(quota_of("v2", &files), Some(1.5));
    }

    #[test]
    fn max_is_no_quota() {
        let files = [
            ("proc/self/cgroup", "0::/app\n"),
            ("proc/self/mountinfo", TWO),
            ("sys/fs/cgroup/app/cpu.max", "max 100000\n"),
        ];
        assert_eq!(quota_of("v2-max", &files), None);
    }

    #[test]
    fn the_smallest_quota_on_the_way_up_counts() {
        let files = [
            ("proc/self/cgroup", "0::/slice/pod/app\n"),
            ("proc/self/mountinfo", TWO),
            ("sys/fs/cgroup/slice/pod/app/cpu.max", "800000 100000\n"),
            ("sys/fs/cgroup/slice/pod/cpu.max", "200000 100000\n"),
            ("sys/fs/cgroup/slice/cpu.max", "max 100000\n"),
        ];
        assert_eq!(quota_of("v2-up", &files), Some(2.0));
    }

    #[test]
    fn version_1_has_it_in_two_and_minus_one_for_none() {
        let group = "sys/fs/cgroup/cpu,cpuacct/docker/17";
        let (quota_file, period_file) =
            (format!("{group}/cpu.cfs_quota_us"), format!("{group}/cpu.cfs_period_us"));
        let files = |quota| {
            [
                ("proc/self/cgroup", "4:cpuset:/\n3:cpu,cpuacct:/docker/17\n0::/\n"),
                ("proc/self/mountinfo", ONE),
                (&*quota_file, quota),
                (&*period_file, "50000\n"),
            ]
        };
        assert_eq!(quota_of("v1", &files("25000\n")), Some(0.5));
        assert_eq!(quota_of("v1-none", &files("-1\n")), None);
    }

    #[test]
    fn a_container_sees_its_part_of_the_tree_at_another_place() {
        let mount = "32 31 0:29 /docker/17 /sys/fs/cgroup/cpu ro - cgroup cgroup rw,cpu\n";
        let files = [
            ("proc/self/cgroup", "3:cpu:/docker/17/inner\n"),
            ("proc/self/mountinfo", mount),
            ("sys/fs/cgroup/cpu/cpu.cfs_quota_us", "300000\n"),
            ("sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000\n"),
        ];
        assert_eq!(quota_of("part", &files), Some(3.0));
    }

    #[test]
    fn a_group_outside_of_what_is_seen_is_limited_by_what_is_seen() {
        let files = [
            ("proc/self/cgroup", "0::/../other\n"),
            ("proc/self/mountinfo", TWO),
            ("sys/fs/cgroup/cpu.max", "100000 100000\n"),
            ("sys/fs/other/cpu.max", "900000 100000\n"),
        ];
        assert_eq!(quota_of("outside", &files), Some(1.0));
    }

    #[test]
    fn the_smaller_of_both_versions_counts() {
        let both = format!("{ONE}41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n");
        let files = [
            ("proc/self/cgroup", "1:cpu,cpuacct:/\n0::/\n"),
            ("proc/self/mountinfo", &*both),
            ("sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us", "400000"),
            ("sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us", "100000"),
            ("sys/fs/cgroup/unified/cpu.max", "200000 100000"),
        ];
        assert_eq!(quota_of("both", &files), Some(2.0));
    }

    #[test]
    fn what_is_not_there_or_makes_no_sense_limits_nothing() {
        assert_eq!(quota_of("nothing", &[]), None);
        let files = [
            ("proc/self/cgroup", "0::/app\nnonsense\n"),
            ("proc/self/mountinfo", &*format!("{TWO}and so on\n - \n")),
            ("sys/fs/cgroup/app/cpu.max", "0 0\n"),
            ("sys/fs/cgroup/cpu.max", "many\n"),
        ];
        assert_eq!(quota_of("nonsense", &files), None);
    }
}
