//! Nodes that are cut off from others while their clients still reach them: in both directions, or in one alone. Nothing acknowledged is lost, nothing
//! is done twice, nothing stale is read, those that reach each other go on, and when the cut is healed all are members and equal again.
//!
//! Only the links between nodes are cut, by rules of the kernel's packet filter: so these tests need root, and are run by `make faults`. `RUNS=20` cuts
//! each of them so many times at other moments; `SEED=7` begins with that one. Each prints what it has measured.

use std::{
    collections::BTreeSet,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    sync::{Arc, OnceLock},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use replicator_client::proto::{Consistency, NodeState, StatusResponse};
use replicator_tests::{Cluster, Links, Load, Residents, Scenario, module, number, scenario, settle, until};
use tokio::task::JoinHandle;

/// Cuts that one cluster lives through. A chain lets a replica in again ever later, 1, 2, 4, … s after it was left out: these tests would wait for that.
const CUTS_PER_CLUSTER: usize = 3;
/// Answers that a node must give to show that it goes on.
const ADVANCE: u64 = 20;
/// How long a victim may take to say that it isn't well.
const TOLD_MAX: Duration = Duration::from_secs(4);
/// How often a status is asked for, where the moment counts.
const LOOK: Duration = Duration::from_millis(5);

/// In which direction a node is cut off, or a link is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Both,
    /// What the victim sends is lost: of a link, what its first end does.
    Sends,
    /// What it is sent is lost.
    Receives,
}

impl Way {
    fn pairs(self, victim: usize, others: impl IntoIterator<Item = usize>) -> Vec<(usize, usize)> {
        let pair = |other| match self {
            Self::Both => vec![(victim, other), (other, victim)],
            Self::Sends => vec![(victim, other)],
            Self::Receives => vec![(other, victim)],
        };
        others.into_iter().flat_map(pair).collect()
    }
}

/// What a test cuts. Places are those in the chain; in majority mode the primary's is 0.
#[derive(Debug, Clone, Copy)]
enum Cut {
    /// One replica from all other nodes.
    Replica { place: usize, way: Way },
    /// The link between two replicas.
    Link { places: (usize, usize), way: Way },
    /// One replica from all witnesses.
    FromWitnesses { place: usize, way: Way },
    /// The node that leads the configuration group from all others.
    Coordinator { way: Way },
}

/// Who must go on meanwhile.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Then {
    /// The other replicas, as they stand.
    Others,
    /// They too, after one of them has become the primary.
    Deposed,
    /// All replicas are in the chain, which has turned so that these two are no neighbours; of those, the primary's clients are served.
    Turned(usize, usize),
}

/// A cut at work.
struct Struck {
    /// Whose packets to whom are lost.
    pairs: Vec<(usize, usize)>,
    /// Whose status is watched.
    victim: usize,
    then: Then,
}

/// What one cut came to.
struct Measured {
    silence: Duration,
    told: Option<(Duration, String)>,
    mended: Duration,
    epochs: u64,
}

/// A number from 0 to below `bound`, which the seed decides.
fn draw(seed: u64, what: &str, bound: u64) -> u64 {
    let mut hasher = DefaultHasher::new();
    (seed, what).hash(&mut hasher);
    hasher.finish() % bound
}

async fn everyone(cluster: &Cluster) -> Vec<StatusResponse> {
    let mut all = Vec::new();
    for index in 0..cluster.len() {
        all.extend(cluster.status(index).await.ok());
    }
    all
}

fn index_of(cluster: &Cluster, name: &str) -> Result<usize> {
    (0..cluster.len()).find(|index| cluster[*index].name == name).with_context(|| format!("no node {name}"))
}

/// Waits until all replicas are members, and take part in one epoch. Returns them, the primary first, in the chain's order if there is one.
async fn whole(cluster: &Cluster) -> Result<Vec<usize>> {
    until("all replicas take part", async || whole_once(cluster).await).await
}

async fn whole_once(cluster: &Cluster) -> Result<Vec<usize>> {
    let replicas = cluster.replicas().count();
    let all = everyone(cluster).await;
    ensure!(all.len() == cluster.len(), "{} nodes answer", all.len());
    let parts: Vec<&StatusResponse> = all.iter().filter(|status| !status.witness).collect();
    let newest = parts.iter().max_by_key(|status| status.epoch).context("no replica")?;
    for status in &parts {
        let takes_part = matches!(status.state(), NodeState::Primary | NodeState::Follower);
        let (name, epoch) = (&status.node_id, status.epoch);
        ensure!(takes_part && epoch == newest.epoch, "{name} is {:?} in epoch {epoch}", status.state());
    }
    let mut order: Vec<&str> = match &newest.chain {
        Some(chain) => chain.members.iter().map(|member| member.node_id.as_str()).collect(),
        None => parts.iter().map(|status| status.node_id.as_str()).collect(),
    };
    ensure!(order.len() == replicas, "epoch {}: {order:?}", newest.epoch);
    ensure!(order.contains(&newest.primary_node_id.as_str()), "the primary is {:?}", newest.primary_node_id);
    order.sort_by_key(|name| *name != newest.primary_node_id);
    order.into_iter().map(|name| index_of(cluster, name)).collect()
}

async fn strike(cluster: &Cluster, order: &[usize], cut: Cut) -> Result<Struck> {
    let witnesses = || (0..cluster.len()).filter(|&index| cluster[index].witness);
    let off = |victim: usize, way: Way| {
        let then = if victim == order[0] { Then::Deposed } else { Then::Others };
        Struck { pairs: way.pairs(victim, cluster.others(victim)), victim, then }
    };
    Ok(match cut {
        Cut::Replica { place, way } => off(order[place], way),
        Cut::Link { places: (from, to), way } => {
            let (from, to) = (order[from], order[to]);
            let chain = cluster.len() > order.len();
            let then = if chain { Then::Turned(from, to) } else { Then::Others };
            // In a chain too it is the one without a link to the primary, once that has turned.
            Struck { pairs: way.pairs(from, [to]), victim: to, then }
        }
        Cut::FromWitnesses { place, way } => {
            let victim = order[place];
            Struck { pairs: way.pairs(victim, witnesses()), victim, then: Then::Others }
        }
        Cut::Coordinator { way } => off(coordinator(cluster).await?, way),
    })
}

/// The node that leads the configuration group, as most of a chain's nodes say.
async fn coordinator(cluster: &Cluster) -> Result<usize> {
    let all = everyone(cluster).await;
    let told = all.iter().filter_map(|status| Some(status.chain.as_ref()?.coordinator_node_id.clone()));
    let told: Vec<String> = told.collect();
    let name = told.iter().find(|name| 2 * told.iter().filter(|other| other == name).count() > cluster.len());
    index_of(cluster, name.context("no majority knows a coordinator")?)
}

/// Waits until the epoch, and who leads it, are as they must be while this is cut. Returns the replicas whose clients must be served.
async fn gone_on(cluster: &Cluster, order: &[usize], struck: &Struck, epoch: u64) -> Result<Vec<usize>> {
    let without = |victim: usize| order.iter().copied().filter(|&index| index != victim).collect::<Vec<_>>();
    match struck.then {
        Then::Others => {
            // Long enough for everybody to have noticed; not for a condition, as nobody may have to do anything.
            tokio::time::sleep(Duration::from_millis(500)).await;
            Ok(without(struck.victim))
        }
        Then::Deposed => {
            until("another replica leads", async || {
                for index in without(struck.victim) {
                    let status = cluster.status(index).await?;
                    if status.state() == NodeState::Primary && status.epoch > epoch {
                        return Ok(without(struck.victim));
                    }
                }
                anyhow::bail!("none says so")
            })
            .await
        }
        Then::Turned(one, other) => {
            until("the chain has turned", async || {
                let order = whole_once(cluster).await?;
                let bad = |pair: &[usize]| pair == [one, other] || pair == [other, one];
                ensure!(!order.windows(2).any(bad), "{order:?} has the bad link in it");
                // A replica hands its clients' requests to the primary itself.
                Ok(match order[0] {
                    primary if primary == one => without(other),
                    primary if primary == other => without(one),
                    _ => order,
                })
            })
            .await
        }
    }
}

/// What a node first says when it isn't well, and how long after `since`.
type Told = Arc<OnceLock<(Duration, String)>>;

/// Looks at a node's status until that says that it isn't well, or the other end is dropped.
fn watch(cluster: &Cluster, node: usize, epoch: u64, since: Instant) -> Result<(Told, JoinHandle<()>)> {
    let (client, address) = (cluster.client_of(node)?, cluster[node].client_address.clone());
    let told = Told::default();
    let tell = told.clone();
    let task = tokio::spawn(async move {
        while tell.get().is_none() {
            if let Ok(status) = client.status(&address, false).await {
                let (at, state) = (since.elapsed(), status.state());
                let well = matches!(state, NodeState::Primary | NodeState::Follower | NodeState::Witness);
                if !well || !status.detail.is_empty() || status.epoch != epoch {
                    let what = if status.epoch == epoch { "the same" } else { "a later" };
                    let _ = tell.set((at, format!("{state:?} in {what} epoch, {:?}", status.detail)));
                }
            }
            tokio::time::sleep(LOOK).await;
        }
    });
    Ok((told, task))
}

/// The chain's members, as the newest configuration that any node knows names them.
async fn newest(cluster: &Cluster) -> (u64, usize) {
    let all = everyone(cluster).await;
    let newest = all.iter().filter_map(|status| status.chain.as_ref()).max_by_key(|chain| chain.epoch);
    newest.map_or((0, 0), |chain| (chain.epoch, chain.members.len()))
}

/// Cuts, waits until the others have gone on without the victim, heals, and waits until all are equal members again.
async fn play(cluster: &Cluster, links: &Links, residents: &mut Residents, cut: Cut, seed: u64) -> Result<Measured> {
    let order = whole(cluster).await?;
    if cluster.len() > order.len() {
        // A young group may be led by a replica still.
        until("a witness leads the group", async || {
            let leader = coordinator(cluster).await?;
            ensure!(cluster[leader].witness, "{} does", cluster[leader].name);
            Ok(())
        })
        .await?;
    }
    residents.advance(&order, ADVANCE, ADVANCE).await?;
    let struck = strike(cluster, &order, cut).await?;
    let epoch = cluster.status(struck.victim).await?.epoch;
    let lost = links.packets_lost()?;
    // Anywhere between two heartbeats, and between two requests.
    tokio::time::sleep(Duration::from_millis(draw(seed, "before", 200))).await;
    let began = Instant::now();
    links.cut(&struck.pairs)?;
    let (mut told, mut watching) = watch(cluster, struck.victim, epoch, began)?;
    let others = gone_on(cluster, &order, &struck, epoch).await?;
    if matches!(struck.then, Then::Turned(..)) {
        // What counts is what it says of being without the primary, not that the chain turned.
        watching.abort();
        let epoch = cluster.status(struck.victim).await?.epoch;
        (told, watching) = watch(cluster, struck.victim, epoch, began)?;
    }
    let names = || others.iter().map(|&index| cluster[index].name.as_str()).collect::<Vec<_>>().join(", ");
    residents.advance(&others, ADVANCE, ADVANCE).await.with_context(|| format!("{} don't go on", names()))?;
    // Every other cut is short, the rest last until the victim has said something.
    let short = Duration::from_millis(draw(seed, "hold", 1_000));
    let long = seed.is_multiple_of(2);
    let hold = Instant::now();
    while hold.elapsed() < short || (long && told.get().is_none() && hold.elapsed() < TOLD_MAX) {
        residents.check()?;
        let (epoch, members) = newest(cluster).await;
        // At most one replica is away in each of these scenarios (rule 9).
        ensure!(members == 0 || members + 1 >= order.len(), "a chain of {members} in epoch {epoch}");
        tokio::time::sleep(LOOK).await;
    }
    residents.advance(&others, ADVANCE, ADVANCE).await.with_context(|| format!("{} stopped again", names()))?;
    let silence = residents.longest_silence(&others, began, Instant::now());
    ensure!(links.packets_lost()? > lost, "nothing was lost: the cut cuts nothing");
    links.heal()?;
    watching.abort();
    let mending = Instant::now();
    let order = whole(cluster).await?;
    residents.advance(&order, ADVANCE, ADVANCE).await.context("after healing")?;
    let mended = mending.elapsed();
    let epochs = cluster.status(order[0]).await?.epoch - epoch;
    Ok(Measured { silence, told: told.get().cloned(), mended, epochs })
}

/// What a cluster is like, by the seed: of chains, both orders.
async fn prepare(s: &Scenario, chain: bool, seed: u64) -> Result<Cluster> {
    if !chain {
        return s.prepare(3).await;
    }
    let order = ["backups-first", "parallel"][usize::from(seed % 2 == 1)];
    s.prepare_with(3, 2, &format!("mode = \"chain\"\n[chain]\npersist_order = \"{order}\"\n")).await
}

/// Plays each of the cuts `RUNS` times, each time at another moment.
fn cuts(name: &str, chain: bool, cuts: &[Cut]) {
    let (runs, first) = (number("RUNS", 1), number("SEED", 1));
    let mut plays = Vec::new();
    for seed in first..first + runs {
        // Each way comes first on a fresh cluster now and then.
        let turned = usize::try_from(draw(seed, "first", 3)).unwrap_or(0);
        let in_turn = cuts.chunks(CUTS_PER_CLUSTER).flat_map(|some| some.iter().cycle().skip(turned).take(some.len()));
        plays.extend(in_turn.map(|cut| (*cut, seed)));
    }
    let mut measured: Vec<(String, Measured)> = Vec::new();
    for some in plays.chunks(CUTS_PER_CLUSTER) {
        let first = some[0].1;
        scenario(async |s| {
            s.run_again_by(format!("make faults TEST={name} SEED={first} RUNS={runs}"));
            let mut cluster = prepare(s, chain, first).await?;
            let links = cluster.links()?;
            cluster.start_all().await?;
            cluster.init(&module("counter"), &[]).await?;
            let loads = Load::several(&cluster, 1).await?;
            let mut residents = Residents::start(&cluster).await?;
            for (cut, seed) in some {
                let done = play(&cluster, &links, &mut residents, *cut, *seed).await;
                let done = done.with_context(|| format!("{cut:?} with seed {seed}, one of {some:?}"))?;
                measured.push((format!("{cut:?}"), done));
            }
            residents.settle(&cluster).await?;
            settle(&cluster, loads).await
        });
    }
    for cut in cuts {
        let what = format!("{cut:?}");
        let of_this: Vec<&Measured> = measured.iter().filter(|(cut, _)| *cut == what).map(|(_, one)| one).collect();
        let told = of_this.iter().filter_map(|one| one.told.as_ref());
        println!(
            "\n{}, {what}, {} times (least/median/greatest):\n  nothing acknowledged at the others for {}; {} epochs until all were equal members again, {} after healing\n  \
             its status told after {}, {} times",
            if chain { "chain" } else { "majority" },
            of_this.len(),
            spread(of_this.iter().map(|one| one.silence.as_millis()), "ms"),
            spread(of_this.iter().map(|one| one.epochs.into()), ""),
            spread(of_this.iter().map(|one| one.mended.as_millis()), "ms"),
            spread(told.clone().map(|(at, _)| at.as_millis()), "ms"),
            told.clone().count(),
        );
        for words in told.map(|(_, words)| words).collect::<BTreeSet<_>>() {
            println!("    {words}");
        }
    }
}

/// The least, the median and the greatest.
fn spread(numbers: impl Iterator<Item = u128>, unit: &str) -> String {
    let mut sorted: Vec<u128> = numbers.collect();
    sorted.sort_unstable();
    match (sorted.first(), sorted.last()) {
        (Some(least), Some(most)) => format!("{least}/{}/{most} {unit}", sorted[sorted.len() / 2]),
        _ => "-".to_owned(),
    }
}

const WAYS: [Way; 3] = [Way::Both, Way::Sends, Way::Receives];

fn replica(place: usize) -> [Cut; 3] {
    WAYS.map(|way| Cut::Replica { place, way })
}

fn link(from: usize, to: usize) -> [Cut; 3] {
    WAYS.map(|way| Cut::Link { places: (from, to), way })
}

#[test]
fn residents_find_reads_that_miss_what_was_acknowledged() {
    scenario(async |s| {
        let cluster = s.chain(3, 0, "parallel", &module("counter")).await?;
        let mut residents = Residents::start_at(&cluster, &[0, 1, 2], Consistency::Local).await?;
        until("a local read is found stale", async || match residents.check() {
            Err(error) => {
                assert!(error.to_string().contains("stale"), "{error:#}");
                Ok(())
            }
            Ok(()) => anyhow::bail!("none was"),
        })
        .await
    });
}

#[test]
#[ignore = "needs root and nft: make faults"]
fn chain_goes_on_without_a_primary_that_is_cut_off() {
    cuts("chain_goes_on_without_a_primary_that_is_cut_off", true, &replica(0));
}

#[test]
#[ignore = "needs root and nft: make faults"]
fn chain_goes_on_without_a_middle_that_is_cut_off() {
    cuts("chain_goes_on_without_a_middle_that_is_cut_off", true, &replica(1));
}

#[test]
#[ignore = "needs root and nft: make faults"]
fn chain_goes_on_without_a_tail_that_is_cut_off() {
    cuts("chain_goes_on_without_a_tail_that_is_cut_off", true, &replica(2));
}

#[test]
#[ignore = "needs root and nft: make faults"]
fn chain_turns_round_a_bad_link_behind_the_primary() {
    cuts("chain_turns_round_a_bad_link_behind_the_primary", true, &link(0, 1));
}

#[test]
#[ignore = "needs root and nft: make faults"]
fn chain_turns_round_a_bad_link_before_the_tail() {
    cuts("chain_turns_round_a_bad_link_before_the_tail", true, &link(1, 2));
}

#[test]
#[ignore = "needs root and nft: make faults"]
fn chain_stands_while_primary_and_tail_lack_their_link() {
    cuts("chain_stands_while_primary_and_tail_lack_their_link", true, &link(0, 2));
}

#[test]
#[ignore = "needs root and nft: make faults"]
fn chain_goes_on_while_a_replica_reaches_no_witness() {
    let of = |place| WAYS.map(move |way| Cut::FromWitnesses { place, way });
    cuts("chain_goes_on_while_a_replica_reaches_no_witness", true, &[of(0), of(1), of(2)].concat());
}

#[test]
#[ignore = "needs root and nft: make faults"]
fn chain_goes_on_while_its_coordinator_is_cut_off() {
    let cut = WAYS.map(|way| Cut::Coordinator { way });
    cuts("chain_goes_on_while_its_coordinator_is_cut_off", true, &cut);
}

#[test]
#[ignore = "needs root and nft: make faults"]
fn majority_goes_on_without_a_primary_that_is_cut_off() {
    cuts("majority_goes_on_without_a_primary_that_is_cut_off", false, &replica(0));
}

#[test]
#[ignore = "needs root and nft: make faults"]
fn majority_goes_on_without_a_follower_that_is_cut_off() {
    cuts("majority_goes_on_without_a_follower_that_is_cut_off", false, &replica(1));
}

#[test]
#[ignore = "needs root and nft: make faults"]
fn majority_goes_on_while_the_primary_and_a_follower_lack_their_link() {
    cuts("majority_goes_on_while_the_primary_and_a_follower_lack_their_link", false, &link(0, 1));
}
