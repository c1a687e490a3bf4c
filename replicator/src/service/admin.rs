//! `AdminService`: what an operator's tools call.

use std::{pin::Pin, sync::Arc, time::Duration};

use bytes::Bytes;
use futures::{Stream, StreamExt as _, stream};
use replicator_machine::Limits;
use replicator_proto::replicator::v1::{self as pb, admin_service_server::AdminService};
use replicator_storage::SnapshotPiece;
use replicator_types::{ClusterId, DiskId, LogIndex, ModuleHash};
use tonic::{Request, Response, Status, Streaming};

use super::{deadline, errors::ApiError, modules};
use crate::{
    node::{Condition, Divergence, Founding, Node, ReadLogError, Restart, UpgradeError},
    replication::{ChainView, Member, Role},
    transport::split_cluster,
};

pub(super) struct AdminApi {
    pub(super) node: Arc<Node>,
}

fn bad(message: impl Into<String>) -> Status {
    ApiError::bad(message).into()
}

fn module_bytes(module: Option<ModuleHash>) -> Bytes {
    module.map(|module| Bytes::copy_from_slice(&module.0)).unwrap_or_default()
}

fn log_unreadable(error: ReadLogError) -> Status {
    match error {
        error @ ReadLogError::Purged { .. } => Status::out_of_range(error.to_string()),
        error @ ReadLogError::NotReady(_) => Status::failed_precondition(error.to_string()),
        error => Status::internal(error.to_string()),
    }
}

fn member(member: &Member, matched: LogIndex) -> pb::Member {
    pb::Member {
        node_id: member.node.clone(),
        disk_id: member.disk.0,
        client_address: member.client_address.clone(),
        peer_address: member.peer_address.clone(),
        voter: member.voter,
        witness: member.witness,
        matched_log_index: matched.0,
    }
}

fn chain_message(chain: ChainView, members: &[(Member, LogIndex)]) -> pb::Chain {
    let name = |disk: DiskId| {
        let member = members.iter().find(|(member, _)| member.disk == disk);
        member.map(|(member, _)| member.node.clone()).unwrap_or_default()
    };
    pb::Chain {
        epoch: chain.epoch.0,
        members: chain
            .members
            .iter()
            .map(|(disk, life)| pb::ChainMember { node_id: name(*disk), disk_id: disk.0, incarnation: life.0 })
            .collect(),
        sealed_epoch: chain.sealed.0,
        link: chain.link.map(|link| pb::ChainLink {
            node_id: name(link.to),
            sent_log_index: link.sent.0,
            received_log_index: link.received.0,
            durable_log_index: link.durable.0,
            silent_ms: u64::try_from(link.silent_for.as_millis()).unwrap_or(u64::MAX),
        }),
        detail: chain.detail,
        coordinator_node_id: chain.coordinator.map(name).unwrap_or_default(),
    }
}

fn restart_message(restart: Restart) -> pb::Restart {
    let millis = |took: Duration| u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
    let peer = |(node_id, clock): (String, LogIndex)| pb::PeerClock { node_id, log_index: clock.0 };
    pb::Restart {
        own_log_index: restart.own.0,
        peers: restart.peers.into_iter().map(peer).collect(),
        snapshot_log_index: restart.image.0,
        caught_up: restart.caught_up_ms.is_some(),
        took_ms: restart.caught_up_ms.unwrap_or_default(),
        whole_state: restart.fetched.map(|whole| pb::WholeState {
            from_node_id: whole.from,
            log_index: whole.position.index.0,
            bytes: whole.bytes.0,
            bytes_total: whole.bytes.1,
            took_ms: millis(whole.took),
            entered: whole.entered,
        }),
        repaired: restart.repaired,
    }
}

fn divergence_message(found: &Divergence) -> pb::Divergence {
    pb::Divergence {
        outvoted: found.outvoted,
        against_node_ids: found.against.iter().map(|(node, _)| node.clone()).collect(),
        answers_differ: found.answers,
        equal_log_index: found.equal.unwrap_or_default().0,
        log_index: found.index.0,
        exact: found.exact,
        digest: found.here.0,
        digest_there: found.there.0,
        request: found.request.as_ref().map(|request| pb::DivergentRequest {
            session_id: Bytes::copy_from_slice(&request.session.0),
            sequence: request.sequence.0,
            sha256: Bytes::copy_from_slice(&request.sha256),
            bytes: request.bytes,
            preview: request.preview.clone(),
        }),
        found_us: found.found_us,
    }
}

/// 0 means the default.
fn limits(given: Option<pb::Limits>) -> Limits {
    let (given, default) = (given.unwrap_or_default(), Limits::default());
    let or = |value: u64, default: u64| if value == 0 { default } else { value };
    let or32 = |value: u32, default: u32| if value == 0 { default } else { value };
    Limits {
        apply_fuel: or(given.apply_fuel, default.apply_fuel),
        query_fuel: or(given.query_fuel, default.query_fuel),
        memory_pages: or32(given.memory_pages, default.memory_pages),
        request_bytes: or32(given.request_bytes, default.request_bytes),
        output_bytes: or32(given.output_bytes, default.output_bytes),
        sessions: or32(given.sessions, default.sessions),
        session_window: or32(given.session_window, default.session_window),
        session_ttl_us: or(given.session_ttl_ms.saturating_mul(1_000), default.session_ttl_us),
        session_ttl_max_us: or(given.session_ttl_max_ms.saturating_mul(1_000), default.session_ttl_max_us),
        retained_push_bytes: or(given.retained_push_bytes, default.retained_push_bytes),
        tick_us: or(given.tick_ms.saturating_mul(1_000), default.tick_us),
        snapshot_fuel: or(given.snapshot_fuel, default.snapshot_fuel),
        restore_fuel: or(given.restore_fuel, default.restore_fuel),
        chunk_bytes: or32(given.chunk_bytes, default.chunk_bytes),
    }
}

#[tonic::async_trait]
impl AdminService for AdminApi {
    async fn status(&self, request: Request<pb::StatusRequest>) -> Result<Response<pb::StatusResponse>, Status> {
        let mut status = self.node.status();
        let mut state_hash = 0;
        if request.get_ref().state_hash && status.applied.genesis.is_some() {
            let hashed =
                self.node.state_hash().await.map_err(|error| Status::from(ApiError::of(&self.node, error.into())))?;
            status = self.node.status();
            // The digest and index must belong to the hash, whatever was applied meanwhile.
            if status.applied.index() != Some(hashed.1) {
                return Err(Status::aborted("the state changed while it was hashed; ask again, or pause the writes"));
            }
            state_hash = hashed.0.0;
        }
        let previous = module_bytes(status.applied.previous_module());
        let chain = status.chain.take().map(|chain| chain_message(chain, &status.members));
        let (cluster_id, lineage) = split_cluster(status.cluster);
        Ok(Response::new(pb::StatusResponse {
            node_id: status.node,
            disk_id: status.disk.0,
            incarnation: status.incarnation.0,
            cluster_id,
            lineage,
            mode: self.node.config().mode.to_string(),
            state: match status.condition {
                Condition::Blank => pb::NodeState::Blank,
                Condition::Checking => pb::NodeState::Checking,
                Condition::Halted => pb::NodeState::Halted,
                Condition::Quarantined => pb::NodeState::Quarantined,
                Condition::Running(Role::Learner) => pb::NodeState::Learner,
                Condition::Running(Role::Follower) => pb::NodeState::Follower,
                Condition::Running(Role::Candidate) => pb::NodeState::Candidate,
                Condition::Running(Role::Primary) => pb::NodeState::Primary,
                Condition::Running(Role::Witness) => pb::NodeState::Witness,
            }
            .into(),
            detail: status.detail,
            epoch: status.epoch.0,
            primary_node_id: status.primary.as_ref().map(|primary| primary.node.clone()).unwrap_or_default(),
            primary_address: status.primary.map(|primary| primary.client_address).unwrap_or_default(),
            last_log_index: status.last.0,
            durable_log_index: status.durable.0,
            committed_log_index: status.committed.0,
            applied_log_index: status.applied.index().unwrap_or_default().0,
            state_digest: status.applied.digest.0,
            state_hash,
            module_sha256: module_bytes(status.applied.active_module()),
            module_description: status.applied.module,
            engine: replicator_machine::engine_fingerprint(),
            sessions: status.applied.sessions,
            memory_bytes: status.applied.memory_bytes,
            traps: status.applied.traps,
            members: status.members.iter().map(|(m, matched)| member(m, *matched)).collect(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            peer_address: self.node.config().peer_address.to_string(),
            chain,
            witness: self.node.config().witness,
            restart: Some(restart_message(status.restart)),
            snapshot_log_index: status.image.unwrap_or_default().0,
            purged_log_index: status.purged.unwrap_or_default().0,
            disk_free_bytes: status.room.free_bytes,
            disk_full: !status.room.open,
            module_since_log_index: status.applied.modules.last().map_or(0, |span| span.from.index.0),
            previous_module_sha256: previous,
            awaited_engine: status.applied.awaited_engine.unwrap_or_default(),
            module_paused_us: status.applied.last_switch.map_or(0, |(_, paused)| modules::micros(paused)),
            divergence: status.divergence.map(|found| divergence_message(&found)),
        }))
    }

    async fn upload_module(
        &self,
        request: Request<Streaming<pb::UploadModuleRequest>>,
    ) -> Result<Response<pb::UploadModuleResponse>, Status> {
        modules::upload(&self.node, request).await
    }

    async fn list_modules(
        &self,
        _: Request<pb::ListModulesRequest>,
    ) -> Result<Response<pb::ListModulesResponse>, Status> {
        modules::list(&self.node).await
    }

    async fn activate_module(
        &self,
        request: Request<pb::ActivateModuleRequest>,
    ) -> Result<Response<pb::ActivateModuleResponse>, Status> {
        modules::activate(&self.node, request).await
    }

    async fn rollback_module(
        &self,
        request: Request<pb::RollbackModuleRequest>,
    ) -> Result<Response<pb::ActivateModuleResponse>, Status> {
        modules::roll_back(&self.node, request).await
    }

    async fn remove_module(
        &self,
        request: Request<pb::RemoveModuleRequest>,
    ) -> Result<Response<pb::RemoveModuleResponse>, Status> {
        modules::remove(&self.node, request.get_ref()).await
    }

    async fn upgrade_engine(
        &self,
        request: Request<pb::UpgradeEngineRequest>,
    ) -> Result<Response<pb::UpgradeEngineResponse>, Status> {
        let deadline = deadline(&request);
        let pb::UpgradeEngineRequest { from_engine, to_engine } = request.into_inner();
        let index = self.node.upgrade_engine(from_engine, to_engine, deadline).await;
        let index = index.map_err(|error| match error {
            UpgradeError::Node(error) => Status::from(ApiError::of(&self.node, error.into())),
            UpgradeError::Bad(why) => bad(why),
            refused @ UpgradeError::Refused(_) => Status::failed_precondition(refused.to_string()),
        })?;
        Ok(Response::new(pb::UpgradeEngineResponse { log_index: index.0 }))
    }

    async fn bootstrap(
        &self,
        request: Request<pb::BootstrapRequest>,
    ) -> Result<Response<pb::BootstrapResponse>, Status> {
        let request = request.into_inner();
        let founding = Founding {
            cluster: ClusterId::try_from(&request.cluster_id[..]).map_err(|_| bad("cluster_id must have 16 bytes"))?,
            members: request
                .members
                .into_iter()
                .map(|member| Member {
                    node: member.node_id,
                    disk: DiskId(member.disk_id),
                    client_address: member.client_address,
                    peer_address: member.peer_address,
                    voter: true,
                    witness: member.witness,
                })
                .collect(),
            module: modules::hash(&request.module_sha256, "module_sha256")?,
            app_config: request.app_config,
            limits: limits(request.limits),
        };
        let index = self.node.found(founding).await.map_err(Status::failed_precondition)?;
        Ok(Response::new(pb::BootstrapResponse { log_index: index.0 }))
    }

    async fn take_snapshot(
        &self,
        _: Request<pb::TakeSnapshotRequest>,
    ) -> Result<Response<pb::TakeSnapshotResponse>, Status> {
        let taken = self.node.take_image().await.map_err(Status::failed_precondition)?;
        Ok(Response::new(pb::TakeSnapshotResponse {
            log_index: taken.position.index.0,
            state_bytes: taken.state_bytes,
            file_bytes: taken.file_bytes,
            took_us: u64::try_from(taken.took.as_micros()).unwrap_or(u64::MAX),
            paused_us: u64::try_from(taken.paused.as_micros()).unwrap_or(u64::MAX),
            paused_cpu_us: u64::try_from(taken.paused_cpu.as_micros()).unwrap_or(u64::MAX),
        }))
    }

    type SaveSnapshotStream = Pin<Box<dyn Stream<Item = Result<pb::SaveSnapshotResponse, Status>> + Send>>;

    async fn save_snapshot(
        &self,
        request: Request<pb::SaveSnapshotRequest>,
    ) -> Result<Response<Self::SaveSnapshotStream>, Status> {
        let saving = self.node.save_image(request.into_inner().newest).await.map_err(Status::failed_precondition)?;
        let first = pb::SaveSnapshotResponse {
            total_bytes: saving.bytes(),
            log_index: saving.manifest().position().index.0,
            up_to_date: saving.up_to_date,
            ..pb::SaveSnapshotResponse::default()
        };
        let pieces = stream::try_unfold(saving, async |mut saving| {
            let piece = saving.next().await.map_err(|error| Status::internal(error.to_string()))?;
            Ok(piece.map(|SnapshotPiece { offset, bytes, checksum }| {
                let piece = pb::SaveSnapshotResponse { offset, piece: bytes, checksum, ..Default::default() };
                (piece, saving)
            }))
        });
        Ok(Response::new(Box::pin(stream::iter([Ok(first)]).chain(pieces))))
    }

    type DownloadModuleStream = Pin<Box<dyn Stream<Item = Result<pb::DownloadModuleResponse, Status>> + Send>>;

    async fn download_module(
        &self,
        request: Request<pb::DownloadModuleRequest>,
    ) -> Result<Response<Self::DownloadModuleStream>, Status> {
        let chunks = modules::chunks(&self.node, &request.get_ref().sha256).await?;
        Ok(Response::new(Box::pin(stream::iter(chunks.map(|chunk| Ok(pb::DownloadModuleResponse { chunk }))))))
    }

    type ReadLogStream = Pin<Box<dyn Stream<Item = Result<pb::ReadLogResponse, Status>> + Send>>;

    async fn read_log(&self, request: Request<pb::ReadLogRequest>) -> Result<Response<Self::ReadLogStream>, Status> {
        let reading = self.node.read_log(LogIndex(request.into_inner().from_log_index)).map_err(log_unreadable)?;
        let batches = stream::try_unfold(reading, async |mut reading| {
            let batch = reading.next().await.map_err(log_unreadable)?;
            Ok(batch.map(|batch| {
                let entries = batch.into_iter().map(|(position, entry)| pb::LoggedEntry {
                    log_index: position.index.0,
                    epoch: position.epoch.0,
                    own: entry.is_none(),
                    entry: entry.unwrap_or_default(),
                });
                (pb::ReadLogResponse { entries: entries.collect(), to_log_index: reading.until().0 }, reading)
            }))
        });
        Ok(Response::new(Box::pin(batches)))
    }

    async fn remove_node(
        &self,
        request: Request<pb::RemoveNodeRequest>,
    ) -> Result<Response<pb::RemoveNodeResponse>, Status> {
        let name = request.into_inner().node_id;
        let running = self.node.running().map_err(|error| Status::from(ApiError::of(&self.node, error.into())))?;
        let members = running.strategy.view().borrow().members.clone();
        let replicas = || members.iter().filter(|member| !member.witness);
        let Some(member) = replicas().find(|member| member.node == name) else {
            let names: Vec<&str> = replicas().map(|member| member.node.as_str()).collect();
            return Err(bad(format!("no replica is called {name:?}; the replicas are {}", names.join(", "))));
        };
        running.strategy.remove(member.disk).await.map_err(Status::failed_precondition)?;
        Ok(Response::new(pb::RemoveNodeResponse {}))
    }

    async fn transfer_primary(
        &self,
        request: Request<pb::TransferPrimaryRequest>,
    ) -> Result<Response<pb::TransferPrimaryResponse>, Status> {
        let deadline = deadline(&request);
        let name = request.into_inner().node_id;
        let running = self.node.running().map_err(|error| Status::from(ApiError::of(&self.node, error.into())))?;
        let mut view = running.strategy.view();
        let now = view.borrow().clone();
        if now.role != Role::Primary {
            let primary = self
                .node
                .primary()
                .map_or_else(|| "unknown".to_owned(), |(node, address)| format!("{node} at {address}"));
            return Err(Status::failed_precondition(format!("this node isn't the primary; ask it: {primary}")));
        }
        let target = now.members.iter().find(|member| member.node == name && member.voter && !member.witness);
        let Some(target) = target.map(|member| member.disk) else {
            let voters: Vec<&str> =
                now.members.iter().filter(|m| m.voter && !m.witness).map(|m| m.node.as_str()).collect();
            return Err(bad(format!("no voter is called {name:?}; the voters are {}", voters.join(", "))));
        };
        if now.primary == Some(target) {
            return Ok(Response::new(pb::TransferPrimaryResponse { primary_node_id: name }));
        }
        running.strategy.transfer(target).await.map_err(Status::unavailable)?;
        let moved = view.wait_for(|view| view.primary == Some(target));
        let within = deadline.saturating_duration_since(std::time::Instant::now()).min(Duration::from_secs(5));
        match tokio::time::timeout(within, moved).await {
            Ok(Ok(view)) => {
                let primary_node_id = view.primary().map(|primary| primary.node.clone()).unwrap_or_default();
                Ok(Response::new(pb::TransferPrimaryResponse { primary_node_id }))
            }
            _ => Err(Status::unavailable(format!(
                "{name} did not take over in time; `replicator status` tells who leads"
            ))),
        }
    }
}
