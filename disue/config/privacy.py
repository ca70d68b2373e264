"""What clients tell the server."""

from typing import Literal

from pydantic import Field

from disue.config.settings import Settings

Privacy = Literal["plain", "dp", "secure"]


class PrivacySettings(Settings):
    """Privacy, and what clients tell of their data."""

    privacy: Privacy = Field(
        "plain",
        description="what of a client's data the server sees; dp: clipped and noisy releases (extra `dp`); secure: "
        "sketches to cluster by, and sums of the updates of clusters, of 3 clients at least; what that protects is in "
        "[PRIVACY.md](PRIVACY.md)",
    )
    dp_clip: float = Field(
        1.0, ge=1e-6, le=1e6, description="with privacy=dp: no update of a client is longer than this"
    )
    dp_noise: float = Field(
        1.0,
        ge=1e-9,
        le=1e6,
        description="with privacy=dp: deviation of the noise in each coordinate, in lengths of the longest vector",
    )
    dp_delta: float = Field(
        1e-5, ge=1e-100, lt=1.0, description="with privacy=dp: the delta for which epsilon is reported"
    )
    sketch_size: int = Field(
        8, ge=1, le=10**5, description="with privacy=secure: numbers in the sketch of a client's signature"
    )
    sketch_noise: float = Field(
        0.0,
        ge=0.0,
        le=1e6,
        description="with privacy=secure: length of the noise in a sketch, on the mean, in lengths of the signature",
    )
    signature: str = Field("initial-prototypes", description="what clients are compared by")
    share_label_counts: bool = Field(
        True,
        description="tell the server how many examples of each class a client has; else only which classes it has, and "
        "the clusters' priors are estimated on the proxy set",
    )
