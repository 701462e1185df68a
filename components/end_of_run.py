"""The exit handler: however a run ends, its log's last line says how, and the traffic is as somebody meant it to be."""

from kfp.dsl import PipelineTaskFinalStatus, component

from components import IMAGE


@component(base_image=IMAGE, install_kfp_package=False)
def end_of_run(project: str, region: str, api_endpoint: str, model: str, status: PipelineTaskFinalStatus) -> None:
    """Say how the run of `model` ended: `twophase: {"step": "end of run", ...}`, with the error where it failed.

    Where Vertex AI serves (`project` is named), a failed run may have left a canary of a version that nothing was asked
    of yet: the endpoint's traffic goes back to what its history says was meant last.
    """
    from components.step import step

    with step("end of run") as say:
        say.result(
            f"{model}: {status.state} {status.error_message}".strip(),
            state=status.state,
            job=status.pipeline_job_resource_name,
            error=status.error_message,
        )
        if project and status.state != "SUCCEEDED":
            from components.traffic import put_back

            for name, shares in put_back(project, region, api_endpoint, model):
                say.result(f"{name}: traffic is {shares} again")
