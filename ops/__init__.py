"""Operations over all stages: doctor, plan, memory and workload estimates, Slurm scripts. The top layer."""
