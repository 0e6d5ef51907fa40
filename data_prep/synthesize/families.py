"""The families of flows that can be synthesized, each in the schema of a dataset of The Well.

A family defines the name of its dataset, files, grid, fields and parameters, draws initial states
and solves the equations. Everything that families share, from listing files to resuming, is in
`generate`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from data_prep.synthesize.euler import EulerSolver, conserved, primitive
from data_prep.synthesize.gravity_cooling import Cooling, GravityCoolingSolver
from data_prep.synthesize.initial import multi_quadrants, turbulent_velocity, unstable_layer
from data_prep.synthesize.rayleigh_benard import RayleighBenardSolver, chebyshev_points

__all__ = [
    "FAMILIES",
    "GASES",
    "CloudUnits",
    "Euler",
    "Family",
    "FieldValues",
    "GravityCooling",
    "RayleighBenard",
]

#: The values of a state's fields, by name: scalars (B, *S), vectors (B, *S, D).
FieldValues = Mapping[str, np.ndarray]


class Family(ABC):
    """A family of flows.

    Attributes:
        physics: The name of the dataset and of its folder in The Well.
        solver: The name and version of the solver; the version changes whenever the same arguments
            give different values.
        parameters: The default values of the parameters, which the trajectories of a file share.
        resolution: The usual number of points along the first axis.
        time_step: The time between two states, as in The Well.
        scalar_fields, vector_fields: The names of the fields, in order.
        mixes: Whether trajectories with different parameters can be solved in one batch.
    """

    physics: str
    solver: str
    parameters: ClassVar[Mapping[str, Sequence[float]]]
    resolution: int
    time_step: float
    scalar_fields: Sequence[str]
    vector_fields: Sequence[str]
    mixes: bool = True

    @property
    @abstractmethod
    def boundaries(self) -> dict[str, str]:
        """The kind of boundary condition of each axis."""

    @abstractmethod
    def check(self, resolution: int, parameters: Mapping[str, Sequence[float]]) -> None:
        """Checks that the solver supports a resolution and values of parameters.

        Raises:
            ValueError: A value is not supported; the message names it and what is expected.
        """

    @abstractmethod
    def file_name(self, parameters: Mapping[str, float]) -> str:
        """The name of the file with these parameters, as in The Well."""

    @abstractmethod
    def key(self, parameters: Mapping[str, float]) -> tuple[int, ...]:
        """Integers that identify the parameters, for the seeds of random generators."""

    @abstractmethod
    def grid(self, resolution: int) -> dict[str, np.ndarray]:
        """The coordinates along each axis."""

    @abstractmethod
    def solve(
        self,
        resolution: int,
        parameters: Sequence[Mapping[str, float]],
        generators: Sequence[np.random.Generator],
        times: Sequence[float],
    ) -> Iterator[FieldValues]:
        """Solves a batch of B trajectories and yields their states at `times`.

        Arguments:
            resolution: The number of points along the first axis.
            parameters: The parameters of each trajectory.
            generators: The random generator of each trajectory's initial state.
            times: The increasing times, of which the first is 0.
        """


#: The gases of The Well by γ, as its file names call them (formula and temperature in °C).
GASES = {
    1.13: "C3H8_16",
    1.22: "C2H6_15",
    1.3: "CO2_20",
    1.33: "H2O_20",
    1.365: "Dry_air_1000",
    1.4: "Dry_air_20",
    1.404: "H2_100_Dry_air_-15",
    1.453: "H2_-76",
    1.597: "H2_-181",
    1.76: "Ar_-180",
}


class Euler(Family):
    """Multi-quadrant Riemann problems in the unit square, periodic or open."""

    solver = "lola_ds MUSCL-HLLC 1"
    parameters: ClassVar[Mapping[str, Sequence[float]]] = {"gamma": (1.22, 1.33, 1.4, 1.76)}
    resolution = 64
    time_step = 0.015
    scalar_fields = ("energy", "density", "pressure")
    vector_fields = ("momentum",)

    def __init__(self, physics: str, periodic: bool) -> None:
        self.physics, self.periodic = physics, periodic

    @property
    def boundaries(self) -> dict[str, str]:
        return dict.fromkeys("xy", "PERIODIC" if self.periodic else "OPEN")

    def check(self, resolution: int, parameters: Mapping[str, Sequence[float]]) -> None:
        if resolution < 4:
            raise ValueError(f"resolution={resolution}: at least 4 cells are needed")
        for gamma in parameters["gamma"]:
            if gamma not in GASES:
                known = ", ".join(map(str, GASES))
                raise ValueError(f"gamma: {gamma} is not one of The Well's gases: {known}")

    def file_name(self, parameters: Mapping[str, float]) -> str:
        gamma = parameters["gamma"]
        return f"{self.physics}_gamma_{gamma}_{GASES[gamma]}.hdf5"

    def key(self, parameters: Mapping[str, float]) -> tuple[int, ...]:
        return (round(1000 * parameters["gamma"]),)

    def grid(self, resolution: int) -> dict[str, np.ndarray]:
        centres = (np.arange(resolution) + 0.5) / resolution
        return {"x": centres, "y": centres}

    def solve(
        self,
        resolution: int,
        parameters: Sequence[Mapping[str, float]],
        generators: Sequence[np.random.Generator],
        times: Sequence[float],
    ) -> Iterator[FieldValues]:
        shape, periodic = (resolution, resolution), (self.periodic, self.periodic)
        solver = EulerSolver((1 / resolution, 1 / resolution), periodic)
        gammas = [values["gamma"] for values in parameters]
        states = [multi_quadrants(rng, shape, periodic, g) for rng, g in zip(generators, gammas)]
        U, gamma = torch.from_numpy(np.stack(states)).float(), torch.tensor(gammas)
        for V in solver.evolve(U, gamma, times):
            yield {
                "energy": V[:, -1].numpy(),
                "density": V[:, 0].numpy(),
                "pressure": primitive(V, gamma)[:, -1].numpy(),
                "momentum": V[:, 1:-1].movedim(1, -1).numpy(),
            }


class RayleighBenard(Family):
    """Convection between a warm floor and a cold ceiling, four times as wide as high.

    The buoyancy starts from (1 - y) δ with δ among The Well's five values, a layer above the floor
    where it rises to 1, and a perturbation. The Well's perturbation is white noise of size 10⁻³,
    which grows over tens of time units. Here it has large scales and size 0.1, so that plumes rise
    within a few time units, and it is the same at every resolution.
    """

    physics = "rayleigh_benard"
    solver = "lola_ds Legendre-Galerkin ETD3RK 1"
    parameters: ClassVar[Mapping[str, Sequence[float]]] = {
        "Rayleigh": (1e5, 1e6),
        "Prandtl": (0.5, 1.0),
    }
    resolution = 128
    time_step = 0.25
    scalar_fields = ("buoyancy", "pressure")
    vector_fields = ("velocity",)
    length = 4.0

    @property
    def boundaries(self) -> dict[str, str]:
        return {"x": "PERIODIC", "y": "WALL_DIRICHLET"}

    def check(self, resolution: int, parameters: Mapping[str, Sequence[float]]) -> None:
        if resolution < 32 or resolution % 4:
            raise ValueError(
                f"resolution={resolution}: a multiple of 4 of at least 32 is needed "
                "(points along x; a quarter of it along y)"
            )
        for name, values in parameters.items():
            if min(values) <= 0:
                raise ValueError(f"{name}={min(values):g}: must be positive")

    def file_name(self, parameters: Mapping[str, float]) -> str:
        words = "_".join(f"{name}_{_scientific(value)}" for name, value in parameters.items())
        return f"{self.physics}_{words}.hdf5"

    def key(self, parameters: Mapping[str, float]) -> tuple[int, ...]:
        return tuple(round(1000 * (9 + math.log10(value))) for value in parameters.values())

    def grid(self, resolution: int) -> dict[str, np.ndarray]:
        x = self.length * np.arange(resolution) / resolution
        return {"x": x, "y": chebyshev_points(resolution // 4)}

    def solve(
        self,
        resolution: int,
        parameters: Sequence[Mapping[str, float]],
        generators: Sequence[np.random.Generator],
        times: Sequence[float],
    ) -> Iterator[FieldValues]:
        solver = RayleighBenardSolver((resolution, resolution // 4), self.length)
        x, y = self.grid(resolution).values()
        buoyancy = np.stack([unstable_layer(rng, x / self.length, y) for rng in generators])
        rayleigh, prandtl = (
            torch.tensor([values[name] for values in parameters], dtype=torch.float64)
            for name in self.parameters
        )
        state = solver.rest(torch.from_numpy(buoyancy))
        for later in solver.evolve(state, rayleigh, prandtl, times):
            fields = solver.fields(later, rayleigh, prandtl)
            yield {name: value.float().numpy() for name, value in vars(fields).items()}


@dataclass(frozen=True)
class CloudUnits:
    """The units of a cloud, those of The Well's values: length L, mass M, time √(L³ / (G M)).

    In these units G = 1, and the initial density is the same for all clouds, since L³ ∝ M / ρ0.

    Arguments:
        rho0: The number of hydrogen nuclei per cm³ of the uniform cloud.
    """

    rho0: float

    MASS = 1e6  # solar masses
    LENGTH = 60.0  # parsecs, for 44.5 nuclei per cm³
    GRAVITY = 4.30091e-3  # pc (km/s)² per solar mass
    HYDROGEN = 0.034597  # solar masses per pc³ of gas with one nucleus per cm³, 1.4 m_H each
    BOLTZMANN = 8.2499e-3  # k / m_H, (km/s)² per kelvin
    MOLECULE = 0.6  # mean mass of a particle in m_H, consistent with The Well's pressures
    HEATING = 2e-26  # Γ, erg/s per nucleus (Koyama & Inutsuka 2002)
    NUCLEUS = 2.34294e-24  # 1.4 m_H, in g
    YEAR = 3.15576e7  # in s; and 1 pc / (km/s) = 0.977792 Myr

    @property
    def length(self) -> float:
        """L in parsecs."""
        return self.LENGTH * (44.5 / self.rho0) ** (1 / 3)

    @property
    def velocity(self) -> float:
        """L per unit of time, in km/s."""
        return math.sqrt(self.GRAVITY * self.MASS / self.length)

    @property
    def hydrogen(self) -> float:
        """Nuclei per cm³ in a unit of density M / L³."""
        return self.MASS / self.length**3 / self.HYDROGEN

    @property
    def density(self) -> float:
        """The density of the uniform cloud."""
        return self.rho0 / self.hydrogen

    def cooling(self, metallicity: float, gamma: float) -> Cooling:
        """Heating and cooling with a metallicity (1: solar) and a ratio of specific heats."""
        gas_constant = self.BOLTZMANN / self.MOLECULE / self.velocity**2
        time = self.length / self.velocity * 0.977792e6 * self.YEAR  # in s
        heat = self.HEATING / self.NUCLEUS * 1e-10 * time / self.velocity**2  # (km/s)² -> units
        return Cooling(gas_constant, self.hydrogen, metallicity * (gamma - 1) * heat / gas_constant)


class GravityCooling(Family):
    """Turbulent, self-gravitating interstellar gas with radiative cooling, in an open cube.

    As in The Well, a cloud of uniform density and temperature starts with a random velocity of
    spectrum k⁻² (Burgers 1948). Only the gas in the box exerts gravity.
    """

    physics = "turbulence_gravity_cooling"
    solver = "lola_ds MUSCL-HLLC self-gravity cooling 1"
    parameters: ClassVar[Mapping[str, Sequence[float]]] = {
        "rho0": (0.445, 44.5),
        "Z": (0.0, 1.0),
        "T0": (100.0,),
    }
    resolution = 32
    time_step = 0.02
    scalar_fields = ("density", "pressure", "temperature")
    vector_fields = ("velocity",)
    mixes = False
    gamma = 5 / 3

    @property
    def boundaries(self) -> dict[str, str]:
        return dict.fromkeys("xyz", "OPEN")

    def check(self, resolution: int, parameters: Mapping[str, Sequence[float]]) -> None:
        if resolution < 8:
            raise ValueError(f"resolution={resolution}: at least 8 cells are needed")
        for name, values in parameters.items():
            if min(values) < 0 or (min(values) == 0 and name != "Z"):
                expected = "must not be negative" if name == "Z" else "must be positive"
                raise ValueError(f"{name}={min(values):g}: {expected}")

    def file_name(self, parameters: Mapping[str, float]) -> str:
        words = "_".join(f"{name}_{value:g}" for name, value in parameters.items())
        return f"{self.physics}_{words}.hdf5"

    def key(self, parameters: Mapping[str, float]) -> tuple[int, ...]:
        return tuple(round(1e6 * value) for value in parameters.values())

    def grid(self, resolution: int) -> dict[str, np.ndarray]:
        centres = (np.arange(resolution) + 0.5) / resolution
        return {"x": centres, "y": centres, "z": centres}

    def solve(
        self,
        resolution: int,
        parameters: Sequence[Mapping[str, float]],
        generators: Sequence[np.random.Generator],
        times: Sequence[float],
    ) -> Iterator[FieldValues]:
        rho0, metallicity, T0 = (parameters[0][name] for name in self.parameters)
        units = CloudUnits(rho0)
        cooling = units.cooling(metallicity, self.gamma)
        solver = GravityCoolingSolver(
            (1 / resolution,) * 3, (False,) * 3, gravity=1.0, cooling=cooling
        )
        velocity = [turbulent_velocity(rng, resolution) for rng in generators]
        v = torch.from_numpy(np.stack(velocity)).float()
        rho = torch.full_like(v[:, :1], units.density)
        W = torch.cat((rho, v, rho * cooling.gas_constant * T0), dim=1)
        gamma = torch.full((len(v),), self.gamma)
        for U in solver.evolve(conserved(W, gamma), gamma, times):
            yield _cloud_fields(primitive(U, gamma), cooling)


def _cloud_fields(W: Tensor, cooling: Cooling) -> FieldValues:
    rho, p = W[:, 0], W[:, -1]
    return {
        "density": rho.numpy(),
        "pressure": p.numpy(),
        "temperature": cooling.temperature(rho, p).numpy(),
        "velocity": W[:, 1:-1].movedim(1, -1).numpy(),
    }


def _scientific(value: float) -> str:
    """Formats a number as in The Well's file names: 1e9, 2e-1."""
    mantissa, exponent = f"{value:.6e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}"


#: The datasets that can be synthesized. Their order is part of the seeds: append new ones at the
#: end.
FAMILIES: dict[str, Family] = {
    "euler_periodic": Euler("euler_multi_quadrants_periodicBC", periodic=True),
    "euler_open": Euler("euler_multi_quadrants_openBC", periodic=False),
    "rayleigh_benard": RayleighBenard(),
    "gravity_cooling": GravityCooling(),
}
