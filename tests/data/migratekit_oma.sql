-- The tables of the predecessor's database that attachd writes or reads, and those that they belong to: names, types, keys and
-- cascades as on the appliances. Tables that attachd only needs as parents have their key and little else.

CREATE TABLE vm_replication_contexts (
    context_id     varchar(64)  NOT NULL DEFAULT uuid(),
    vm_name        varchar(255) NOT NULL,
    current_status varchar(32)  NOT NULL DEFAULT 'discovered',
    created_at     timestamp    NULL DEFAULT current_timestamp(),
    updated_at     timestamp    NULL DEFAULT current_timestamp(),
    PRIMARY KEY (context_id)
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_general_ci;

CREATE TABLE replication_jobs (
    id            varchar(191) NOT NULL,
    vm_context_id varchar(64)  DEFAULT NULL,
    status        varchar(191) DEFAULT NULL,
    PRIMARY KEY (id),
    CONSTRAINT fk_replication_jobs_context FOREIGN KEY (vm_context_id)
        REFERENCES vm_replication_contexts (context_id) ON DELETE CASCADE
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_general_ci;

CREATE TABLE vm_disks (
    id            bigint       NOT NULL AUTO_INCREMENT,
    vm_context_id varchar(64)  DEFAULT NULL,
    disk_id       varchar(191) DEFAULT NULL,
    PRIMARY KEY (id),
    CONSTRAINT fk_vm_disks_context FOREIGN KEY (vm_context_id)
        REFERENCES vm_replication_contexts (context_id) ON DELETE CASCADE
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_general_ci;

CREATE TABLE ossea_configs (
    id                  bigint       NOT NULL AUTO_INCREMENT,
    name                varchar(191) NOT NULL,
    api_url             longtext     NOT NULL,
    api_key             longtext     NOT NULL,
    secret_key          longtext     NOT NULL,
    domain              longtext     DEFAULT NULL,
    zone                longtext     DEFAULT NULL,
    template_id         longtext     DEFAULT NULL,
    network_id          longtext     DEFAULT NULL,
    service_offering_id longtext     DEFAULT NULL,
    disk_offering_id    longtext     DEFAULT NULL,
    oma_vm_id           longtext     DEFAULT NULL,
    created_at          datetime(3)  DEFAULT NULL,
    updated_at          datetime(3)  DEFAULT NULL,
    is_active           tinyint(1)   DEFAULT 1,
    PRIMARY KEY (id),
    UNIQUE KEY name (name)
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_general_ci;

CREATE TABLE ossea_volumes (
    id                  bigint       NOT NULL AUTO_INCREMENT,
    vm_context_id       varchar(64)  DEFAULT NULL,
    volume_id           varchar(191) NOT NULL,
    volume_name         longtext     NOT NULL,
    size_gb             bigint       NOT NULL,
    ossea_config_id     bigint       DEFAULT NULL,
    volume_type         longtext     DEFAULT NULL,
    device_path         longtext     DEFAULT NULL,
    mount_point         longtext     DEFAULT NULL,
    status              varchar(191) DEFAULT 'creating',
    created_at          datetime(3)  DEFAULT NULL,
    updated_at          datetime(3)  DEFAULT NULL,
    snapshot_id         varchar(191) DEFAULT NULL,
    snapshot_created_at timestamp    NULL DEFAULT NULL,
    snapshot_status     varchar(50)  DEFAULT 'none',
    PRIMARY KEY (id),
    UNIQUE KEY volume_id (volume_id),
    KEY idx_ossea_volumes_context (vm_context_id)
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_general_ci;

CREATE TABLE device_mappings (
    id                          varchar(64)             NOT NULL DEFAULT uuid(),
    vm_context_id               varchar(64)             DEFAULT NULL,
    volume_uuid                 varchar(64)             NOT NULL,
    volume_id_numeric           bigint                  DEFAULT NULL,
    vm_id                       varchar(64)             NOT NULL,
    operation_mode              enum('oma', 'failover') DEFAULT 'oma',
    cloudstack_device_id        int                     DEFAULT NULL,
    requires_device_correlation tinyint(1)              DEFAULT 1,
    device_path                 varchar(255)            NOT NULL,
    cloudstack_state            varchar(32)             NOT NULL,
    linux_state                 varchar(32)             NOT NULL,
    size                        bigint                  NOT NULL,
    last_sync                   timestamp               NULL DEFAULT NULL,
    created_at                  timestamp               NULL DEFAULT current_timestamp(),
    updated_at                  timestamp               NULL DEFAULT current_timestamp(),
    ossea_snapshot_id           varchar(191)            DEFAULT NULL,
    snapshot_created_at         timestamp               NULL DEFAULT NULL,
    snapshot_status             varchar(50)             DEFAULT 'none',
    persistent_device_name      varchar(255)            DEFAULT NULL,
    symlink_path                varchar(255)            DEFAULT NULL,
    PRIMARY KEY (id),
    UNIQUE KEY volume_id (volume_uuid),
    UNIQUE KEY unique_volume_id (volume_uuid),
    UNIQUE KEY unique_device_path (device_path),
    CONSTRAINT fk_device_mappings_context FOREIGN KEY (vm_context_id)
        REFERENCES vm_replication_contexts (context_id) ON DELETE CASCADE
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_general_ci;

CREATE TABLE nbd_exports (
    id                  bigint unsigned NOT NULL AUTO_INCREMENT,
    vm_context_id       varchar(64)     DEFAULT NULL,
    job_id              varchar(191)    DEFAULT NULL,
    volume_id           varchar(64)     DEFAULT '',
    vm_disk_id          bigint          DEFAULT NULL,
    device_mapping_uuid varchar(64)     DEFAULT NULL,
    export_name         varchar(191)    NOT NULL,
    port                bigint          NOT NULL,
    device_path         longtext        NOT NULL,
    config_path         longtext        DEFAULT NULL,
    status              varchar(191)    DEFAULT 'pending',
    created_at          datetime(3)     DEFAULT NULL,
    updated_at          datetime(3)     DEFAULT NULL,
    PRIMARY KEY (id),
    UNIQUE KEY uni_nbd_exports_export_name (export_name),
    KEY idx_nbd_exports_volume (volume_id),
    CONSTRAINT fk_nbd_exports_mapping FOREIGN KEY (device_mapping_uuid)
        REFERENCES device_mappings (volume_uuid) ON DELETE CASCADE,
    CONSTRAINT fk_nbd_exports_context FOREIGN KEY (vm_context_id)
        REFERENCES vm_replication_contexts (context_id) ON DELETE CASCADE,
    CONSTRAINT fk_nbd_exports_job FOREIGN KEY (job_id)
        REFERENCES replication_jobs (id) ON DELETE CASCADE,
    CONSTRAINT fk_nbd_exports_disk FOREIGN KEY (vm_disk_id)
        REFERENCES vm_disks (id) ON DELETE CASCADE
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_general_ci;

CREATE TABLE volume_operations (
    id           varchar(64)                                                          NOT NULL,
    type         enum('create', 'attach', 'detach', 'delete', 'cleanup')              NOT NULL,
    status       enum('pending', 'executing', 'completed', 'failed', 'cancelled')     NOT NULL DEFAULT 'pending',
    volume_id    varchar(64)                                                          NOT NULL,
    vm_id        varchar(64)                                                          DEFAULT NULL,
    request      longtext CHARACTER SET utf8mb4 COLLATE utf8mb4_bin                   NOT NULL CHECK (json_valid(request)),
    response     longtext CHARACTER SET utf8mb4 COLLATE utf8mb4_bin                   DEFAULT NULL CHECK (json_valid(response)),
    error        text                                                                 DEFAULT NULL,
    created_at   timestamp                                                            NULL DEFAULT current_timestamp(),
    updated_at   timestamp                                                            NULL DEFAULT current_timestamp(),
    completed_at timestamp                                                            NULL DEFAULT NULL,
    PRIMARY KEY (id),
    KEY idx_volume_operations_volume (volume_id),
    KEY idx_volume_operations_vm (vm_id),
    KEY idx_volume_operations_status (status),
    KEY idx_volume_operations_type (type),
    KEY idx_volume_operations_created (created_at)
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_general_ci;
