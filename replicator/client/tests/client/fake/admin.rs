//! The fake's answers to operators: who is a member.

use replicator_client::proto::{self as pb, admin_service_server as server};
use tonic::{Request, Response, Status, Streaming};

use super::node::Node;

#[tonic::async_trait]
impl server::AdminService for Node {
    async fn status(&self, _: Request<pb::StatusRequest>) -> Result<Response<pb::StatusResponse>, Status> {
        let mut state = self.state();
        state.statuses += 1;
        let members = state.members.clone();
        Ok(Response::new(pb::StatusResponse { node_id: format!("n{}", self.name), members, ..Default::default() }))
    }

    async fn upload_module(
        &self,
        _: Request<Streaming<pb::UploadModuleRequest>>,
    ) -> Result<Response<pb::UploadModuleResponse>, Status> {
        Err(Status::unimplemented("the fake has no modules"))
    }

    async fn list_modules(
        &self,
        _: Request<pb::ListModulesRequest>,
    ) -> Result<Response<pb::ListModulesResponse>, Status> {
        Err(Status::unimplemented("the fake has no modules"))
    }

    async fn activate_module(
        &self,
        _: Request<pb::ActivateModuleRequest>,
    ) -> Result<Response<pb::ActivateModuleResponse>, Status> {
        Err(Status::unimplemented("the fake has no modules"))
    }

    async fn rollback_module(
        &self,
        _: Request<pb::RollbackModuleRequest>,
    ) -> Result<Response<pb::ActivateModuleResponse>, Status> {
        Err(Status::unimplemented("the fake has no modules"))
    }

    type DownloadModuleStream = tokio_stream::Empty<Result<pb::DownloadModuleResponse, Status>>;

    async fn download_module(
        &self,
        _: Request<pb::DownloadModuleRequest>,
    ) -> Result<Response<Self::DownloadModuleStream>, Status> {
        Err(Status::unimplemented("the fake has no modules"))
    }

    async fn remove_module(
        &self,
        _: Request<pb::RemoveModuleRequest>,
    ) -> Result<Response<pb::RemoveModuleResponse>, Status> {
        Err(Status::unimplemented("the fake has no modules"))
    }

    async fn upgrade_engine(
        &self,
        _: Request<pb::UpgradeEngineRequest>,
    ) -> Result<Response<pb::UpgradeEngineResponse>, Status> {
        Err(Status::unimplemented("the fake has no engine"))
    }

    async fn bootstrap(&self, _: Request<pb::BootstrapRequest>) -> Result<Response<pb::BootstrapResponse>, Status> {
        Err(Status::unimplemented("the fake needs no bootstrap"))
    }

    type SaveSnapshotStream = tokio_stream::Empty<Result<pb::SaveSnapshotResponse, Status>>;

    async fn save_snapshot(
        &self,
        _: Request<pb::SaveSnapshotRequest>,
    ) -> Result<Response<Self::SaveSnapshotStream>, Status> {
        Err(Status::unimplemented("the fake has no state to save"))
    }

    type ReadLogStream = tokio_stream::Empty<Result<pb::ReadLogResponse, Status>>;

    async fn read_log(&self, _: Request<pb::ReadLogRequest>) -> Result<Response<Self::ReadLogStream>, Status> {
        Err(Status::unimplemented("the fake has no log"))
    }

    async fn remove_node(&self, _: Request<pb::RemoveNodeRequest>) -> Result<Response<pb::RemoveNodeResponse>, Status> {
        Err(Status::unimplemented("the fake keeps its members"))
    }

    async fn transfer_primary(
        &self,
        _: Request<pb::TransferPrimaryRequest>,
    ) -> Result<Response<pb::TransferPrimaryResponse>, Status> {
        Err(Status::unimplemented("the fake has no primary"))
    }

    async fn take_snapshot(
        &self,
        _: Request<pb::TakeSnapshotRequest>,
    ) -> Result<Response<pb::TakeSnapshotResponse>, Status> {
        Err(Status::unimplemented("the fake has no state"))
    }
}
